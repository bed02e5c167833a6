"""Payouts, adjustments and balances over HTTP."""

import asyncio
from typing import Any

import pytest

from service.domain.scopes import Scope
from tests.api.assertions import assert_problem
from tests.api.test_rewards import FRIEND, balance, bought, refunded, use_rewards
from tests.company import Company, new_company, new_id
from tests.factories import Api

NOBODY = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
async def company(api: Api) -> Company:
    company = await new_company(api)
    await use_rewards(company, FRIEND)
    return company


def payout(referrer: Any, amount: int = 500, **members: Any) -> dict[str, Any]:
    who = {"external_id": referrer["external_id"]}
    return {"id": new_id("payout"), **who, "unit": "EUR", "amount": amount, **members}


async def test_what_is_available_is_paid_out_and_a_failed_payout_comes_back(
    company: Company,
) -> None:
    referrer = await company.new_referrer()
    await bought(company, referrer)
    asked = payout(referrer, note="Bank transfer")
    paid = await company.post("/redemptions", asked)
    assert paid.status == 201
    transfer = paid.json()
    assert transfer == {
        "id": transfer["id"],
        "kind": "redemption",
        "from": "available",
        "to": "redeemed",
        "participant_id": referrer["participant_id"],
        "unit": "EUR",
        "amount": 500,
        "reward_id": None,
        "external_id": asked["id"],
        "cancels": None,
        "cancelled_at": None,
        "note": "Bank transfer",
        "created_at": transfer["created_at"],
    }
    again = await company.post("/redemptions", asked)
    assert (again.status, again.json()) == (200, transfer)
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, 0, 500)}

    back = await company.post(f"/redemptions/{transfer['id']}/cancel")
    assert (back.status, back.json()["kind"], back.json()["amount"]) == (201, "cancellation", 500)
    once_more = await company.post(f"/redemptions/{transfer['id']}/cancel")
    assert (once_more.status, once_more.json()) == (200, back.json())
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, 500, 0)}
    listed = (await company.get(f"/transfers?external_id={referrer['external_id']}")).json()
    kinds = [(one["kind"], one["from"], one["to"]) for one in listed["items"]]
    assert kinds == [
        ("cancellation", "redeemed", "available"),
        ("redemption", "available", "redeemed"),
        ("grant", "programme", "available"),
    ]


async def test_a_cancelled_payout_says_so_wherever_it_is_seen(company: Company) -> None:
    """Without `cancelled_at`, a job that repeats the payout would take it for paid."""
    referrer = await company.new_referrer()
    await bought(company, referrer)
    asked = payout(referrer)
    paid = (await company.post("/redemptions", asked)).json()
    back = (await company.post(f"/redemptions/{paid['id']}/cancel")).json()
    assert (back["cancels"], back["cancelled_at"]) == (paid["id"], None)
    now = {**paid, "cancelled_at": back["created_at"]}
    again = await company.post("/redemptions", asked)
    assert (again.status, again.json()) == (200, now)
    page = (await company.get(f"/transfers?external_id={referrer['external_id']}")).json()
    assert page["items"][:2] == [back, now]


async def test_more_than_is_available_is_not_paid_out(company: Company) -> None:
    referrer = await company.new_referrer()
    referee, order, _ = await bought(company, referrer)
    refused = await company.post("/redemptions", payout(referrer, 501), key="one")
    assert (refused.status, refused.json()["code"]) == (409, "balance-too-low")
    assert refused.json()["available"] == 500
    await company.post("/redemptions", payout(referrer, 500))
    await refunded(company, referee, order)
    assert (await company.post("/redemptions", payout(referrer, 1))).json()["available"] == -500
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, -500, 500)}


async def test_a_note_may_have_lines_and_what_scripts_need(company: Company) -> None:
    """Only what would hide or reverse the text beside it is refused."""
    referrer = await company.new_referrer()
    note = "Sorry,\r\n\tlate: 5\u00a0€, \u0646\u0645\u06cc\u200c\u062f\u0627\u0646\u0645"
    given = await company.post("/adjustments", payout(referrer, note=note))
    assert (given.status, given.json()["note"]) == (201, note)


async def test_an_id_means_the_same_for_ever(company: Company) -> None:
    referrer = await company.new_referrer()
    await bought(company, referrer)
    asked = payout(referrer, 100)
    await company.post("/redemptions", asked)
    for path, body in (
        ("/redemptions", {**asked, "amount": 101}),
        ("/redemptions", {**asked, "note": "another"}),
        ("/adjustments", {**asked, "note": "the same"}),
    ):
        assert_problem(await company.post(path, body), 409, "id-reused", ["#/id"])


async def test_an_adjustment_gives_or_takes(company: Company) -> None:
    referrer = await company.new_referrer()
    given = await company.post("/adjustments", payout(referrer, 250, note="Goodwill"))
    assert (given.status, given.json()["from"], given.json()["to"]) == (
        201, "programme", "available",
    )  # fmt: skip
    taken = payout(referrer, -300, note="A mistake")
    assert (await company.post("/adjustments", taken)).json()["amount"] == 300
    again = await company.post("/adjustments", taken)
    assert again.status == 200
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, -50, 0)}


@pytest.mark.parametrize(
    ("path", "members", "pointer"),
    [
        ("/redemptions", {"amount": 0}, "#/amount"),
        ("/redemptions", {"amount": -1}, "#/amount"),
        ("/redemptions", {"amount": 10**12 + 1}, "#/amount"),
        ("/redemptions", {"amount": 1.5}, "#/amount"),
        ("/redemptions", {"amount": "5"}, "#/amount"),
        ("/redemptions", {"amount": True}, "#/amount"),
        ("/redemptions", {"amount": None}, "#/amount"),
        ("/redemptions", {"unit": "eur"}, "#/unit"),
        ("/redemptions", {"unit": None}, "#/unit"),
        ("/redemptions", {"id": "a b"}, "#/id"),
        ("/redemptions", {"id": ""}, "#/id"),
        ("/redemptions", {"id": "x" * 129}, "#/id"),
        ("/redemptions", {"external_id": None}, "#/external_id"),
        ("/redemptions", {"participant_id": NOBODY}, "#/external_id"),
        ("/redemptions", {"external_id": "nobody"}, "#/external_id"),
        ("/redemptions", {"external_id": None, "participant_id": NOBODY}, "#/participant_id"),
        ("/redemptions", {"programme": "nobody"}, "#/programme"),
        ("/redemptions", {"note": "a\0b"}, "#/note"),
        ("/redemptions", {"note": "a\u0007b"}, "#/note"),
        ("/redemptions", {"note": "a\u202eb"}, "#/note"),
        ("/redemptions", {"note": "\u200b"}, "#/note"),
        ("/redemptions", {"note": "x" * 501}, "#/note"),
        ("/redemptions", {"more": 1}, "#/more"),
        ("/adjustments", {"amount": 0, "note": "x"}, "#/amount"),
        ("/adjustments", {"amount": -(10**12) - 1, "note": "x"}, "#/amount"),
        ("/adjustments", {}, "#/note"),
    ],
)
async def test_what_cannot_be_moved_is_refused(
    company: Company, path: str, members: dict[str, Any], pointer: str
) -> None:
    referrer = await company.new_referrer()
    answer = await company.post(path, {**payout(referrer), **members})
    assert_problem(answer, 422, "validation-failed", [pointer])


async def test_an_idempotency_key_works_too(company: Company) -> None:
    referrer = await company.new_referrer()
    await bought(company, referrer)
    asked = payout(referrer, 100)
    first = await company.post("/redemptions", asked, key="one")
    again = await company.post("/redemptions", asked, key="one")
    assert (again.status, again.body) == (201, first.body)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, 400, 100)}


async def test_there_is_no_redemption_to_cancel(company: Company) -> None:
    referrer = await company.new_referrer()
    await bought(company, referrer)
    [grant] = (await company.get("/transfers")).json()["items"]
    for transfer_id in (grant["id"], NOBODY, "nonsense"):
        answer = await company.post(f"/redemptions/{transfer_id}/cancel")
        assert_problem(answer, 404, "transfer-not-found")


async def test_what_a_programme_owes_is_summed_by_unit(company: Company) -> None:
    rich, poor = await company.new_referrer(), await company.new_referrer()
    await company.post("/adjustments", payout(rich, 700, note="x"))
    await company.post("/redemptions", payout(rich, 200))
    await company.post("/adjustments", payout(poor, -30, note="x"))
    await company.post("/adjustments", payout(poor, 5, note="x", unit="points"))
    answer = await company.get("/programmes/default/liability")
    assert answer.json()["items"] == [
        {"unit": "EUR", "pending": 0, "available": 500, "debts": 30, "redeemed": 200},
        {"unit": "points", "pending": 0, "available": 5, "debts": 0, "redeemed": 0},
    ]
    for key in ("nobody", "NO%20ONE"):
        missing = await company.get(f"/programmes/{key}/liability")
        assert_problem(missing, 404, "programme-not-found")


async def test_all_balances_are_paged(company: Company) -> None:
    for _ in range(3):
        referrer = await company.new_referrer()
        for unit in ("EUR", "points"):
            await company.post("/adjustments", payout(referrer, 1, note="x", unit=unit))
    seen: list[tuple[str, str]] = []
    cursor = ""
    while cursor is not None:
        page = (await company.get(f"/balances?limit=4{cursor}")).json()
        seen += [(one["participant_id"], one["unit"]) for one in page["items"]]
        cursor = page["next_cursor"] and f"&cursor={page['next_cursor']}"
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == 6
    for bad in ("x", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAA"):
        refused = await company.get(f"/balances?cursor={bad}")
        assert_problem(refused, 422, "validation-failed", ["#/cursor"])


async def test_pages_that_are_read_at_once_are_what_each_alone_is(company: Company) -> None:
    """One statement reads the pages of several participants."""
    asked: list[str] = []
    for times in (1, 3):
        referrer = await company.new_referrer()
        for _ in range(times):
            referee, order, _ = await bought(company, referrer)
            await company.post("/adjustments", payout(referrer, 1, note="x", unit="points"))
        await refunded(company, referee, order)
        for query in ("", "&limit=1", "&limit=2"):
            for path in ("/rewards", "/transfers", "/balances"):
                asked.append(f"{path}?external_id={referrer['external_id']}{query}")
                if cursor := (await company.get(asked[-1])).json()["next_cursor"]:
                    asked.append(f"{asked[-1]}&cursor={cursor}")
        asked += [
            f"/rewards?external_id={referrer['external_id']}&{wanted}"
            for wanted in ("state=reversed", "state=available", "rule=friend", "rule=other")
        ]
    alone = [(await company.get(path)).json() for path in asked]
    assert len({str(page) for page in alone}) > 15
    answers = await asyncio.gather(*map(company.get, asked))
    assert [answer.json() for answer in answers] == alone


async def test_another_programme_has_its_own_ids_and_balances(company: Company) -> None:
    new = {"key": "spring", "name": "Spring", "rules": {"qualify": {"on": "signup"}}}
    assert (await company.post("/programmes", new)).status == 201
    there = {"external_id": "u-1", "programme": "spring"}
    await company.post("/participants", there)
    here = await company.new_referrer("u-1")
    asked = payout(here, 10, note="x")
    assert (await company.post("/adjustments", asked)).status == 201
    assert (await company.post("/adjustments", {**asked, "programme": "spring"})).status == 201
    assert len((await company.get("/balances?programme=spring")).json()["items"]) == 1
    assert await balance(company, "u-1") == {"EUR": (0, 10, 0)}


async def test_only_clients_with_the_scope_pay_out(api: Api, company: Company) -> None:
    referrer, person = await company.new_referrer(), await api.new_person()
    reader = await new_company(api, Scope.PROGRAMME_READ)
    asked = payout(referrer)
    assert_problem(await reader.post("/redemptions", asked), 403, "insufficient-scope")
    assert_problem(await api.post("/redemptions", asked, by=person), 403, "not-allowed")


async def test_what_an_erased_participant_is_owed_is_seen_and_paid_by_our_id(
    company: Company,
) -> None:
    referrer = await company.new_referrer()
    await bought(company, referrer)
    participant_id = referrer["participant_id"]
    assert (await company.delete(f"/participants/{participant_id}")).status == 204
    [owed] = (await company.get(f"/balances?participant_id={participant_id}")).json()["items"]
    assert owed["available"] == 500
    asked = {"id": new_id("payout"), "participant_id": participant_id, "unit": "EUR", "amount": 500}
    assert (await company.post("/redemptions", asked)).status == 201
    assert (await company.post("/redemptions", asked)).status == 200
    by_theirs = await company.post("/redemptions", payout(referrer))
    assert_problem(by_theirs, 422, "validation-failed", ["#/external_id"])
