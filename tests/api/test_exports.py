"""Exports: whole tables, as streams that can be resumed."""

import csv
import io
import json
from typing import Any

import pytest

from service.domain.exports import COLUMNS, Exported
from service.domain.scopes import Scope
from tests.api.assertions import assert_problem
from tests.api.test_rewards import FRIEND, WELCOME, bought, refunded, use_rewards
from tests.company import Company, new_company
from tests.factories import Api

ID = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
async def company(api: Api) -> Company:
    """A company with something in every table."""
    company = await new_company(api)
    await use_rewards(company, FRIEND, WELCOME)
    referrer = await company.new_referrer(email="secret@a.example", ip="192.0.2.7")
    for _ in range(2):
        referee, order, _ = await bought(company, referrer)
    await refunded(company, referee, order)
    await company.post(
        "/adjustments",
        {
            "id": "=cmd|'/C'!A0",
            "external_id": referrer["external_id"],
            "unit": "EUR",
            "amount": -1200,
            "note": "@SUM(1)",
        },
    )
    return company


async def rows_of(company: Company, table: str, after: str = "") -> list[dict[str, Any]]:
    answer = await company.get(f"/exports/{table}{after}")
    assert (answer.status, answer.headers["Content-Type"]) == (
        200, "application/x-ndjson; charset=utf-8",
    )  # fmt: skip
    return [json.loads(line) for line in answer.body.decode().splitlines()]


@pytest.mark.parametrize("table", Exported)
async def test_every_table_is_exported_and_resumed_after_any_row(
    company: Company, table: Exported
) -> None:
    rows = await rows_of(company, table)
    assert rows
    assert {tuple(row) for row in rows} == {tuple(COLUMNS[table])}
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids))
    for place, row_id in enumerate(ids):
        assert await rows_of(company, table, f"?after={row_id}") == rows[place + 1 :]
    answer = await company.get(f"/exports/{table}?format=csv", headers={"Accept": "text/csv"})
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    head, *cells = csv.reader(io.StringIO(answer.body.decode()))
    assert head == list(COLUMNS[table])
    assert [row[0] for row in cells] == ids
    for secret in (b"secret@a.example", b"192.0.2.7"):
        assert secret not in answer.body


async def test_more_rows_than_a_statement_reads_are_all_there(
    company: Company, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.repositories import exports as statements
    from service.use_cases import exports

    small = statements.EVENTS.replace("LIMIT 1000", "LIMIT 1")
    whole = await rows_of(company, "events")
    monkeypatch.setitem(exports._STATEMENTS, Exported.EVENTS, small)
    assert await rows_of(company, "events") == whole
    assert len(whole) == 3


async def test_text_in_csv_is_no_formula_and_numbers_stay_numbers(company: Company) -> None:
    """Promise 28."""
    answer = await company.get("/exports/transfers?format=csv")
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    [adjusted] = [row for row in rows if row["kind"] == "adjustment"]
    assert (adjusted["external_id"], adjusted["note"]) == ("'=cmd|'/C'!A0", "'@SUM(1)")
    assert {row["amount"] for row in rows} == {"500", "100", "1200"}
    balances = await company.get("/exports/balances?format=csv")
    in_eur = [
        row for row in csv.DictReader(io.StringIO(balances.body.decode())) if row["unit"] == "EUR"
    ]
    assert [row["available"] for row in in_eur] == ["-700"]
    referrals = await company.get("/exports/referrals?format=csv")
    assert b"None" not in referrals.body


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("rewards?format=xml", "#/format"),
        ("rewards?after=x", "#/after"),
        (f"rewards?after={ID}/EUR", "#/after"),
        (f"decisions?after={ID}", "#/after"),
        (f"decisions?after={ID}/99999999999", "#/after"),
        (f"balances?after={ID}/%00", "#/after"),
        ("balances?after=", "#/after"),
    ],
)
async def test_an_export_that_cannot_be_is_refused(
    company: Company, path: str, pointer: str
) -> None:
    assert_problem(await company.get(f"/exports/{path}"), 422, "validation-failed", [pointer])


async def test_there_is_no_other_table(company: Company) -> None:
    for table in ("users", "Rewards", "signals"):
        assert_problem(await company.get(f"/exports/{table}"), 404, "not-found")


async def test_an_empty_table_is_a_head_alone_or_nothing(api: Api) -> None:
    company = await new_company(api)
    assert await rows_of(company, "rewards") == []
    answer = await company.get("/exports/balances?format=csv")
    assert answer.body.decode().split() == [",".join(COLUMNS[Exported.BALANCES])]


async def test_only_a_client_that_may_manage_exports(api: Api) -> None:
    reader = await new_company(api, Scope.PROGRAMME_READ)
    assert_problem(await reader.get("/exports/rewards"), 403, "insufficient-scope")
