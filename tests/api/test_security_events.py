"""What is recorded of security events, for the owner of an account and for the operators."""

import logging
from datetime import timedelta

import asyncpg
import pytest

from service.api.keys import DATABASE
from service.use_cases.housekeeping import Housekeeping
from tests.factories import PASSWORD, Api, Person


async def events(api: Api, person: Person) -> list[str]:
    """Return the names of what happened to the person's account, newest first."""
    page = await api.get("/users/me/activity", by=person)
    assert page.status == 200, page.body
    return [item["event"] for item in page.json()["items"]]


async def test_the_owner_sees_sign_ins_and_failed_ones(api: Api, anna: Person) -> None:
    await api.post(
        "/auth/login",
        {"email": anna.email, "password": "wrong"},
        headers={"User-Agent": "Thief/1.0"},
    )
    page = (await api.get("/users/me/activity", by=anna)).json()
    assert [item["event"] for item in page["items"]] == ["sign_in.failed", "sign_in.succeeded"]
    failed = page["items"][0]
    assert set(failed) == {"event", "at", "address", "user_agent"}
    assert failed["address"] == "127.0.0.0/24"
    assert failed["user_agent"] == "Thief/1.0"


async def test_nobody_sees_the_activity_of_another(api: Api, anna: Person) -> None:
    bert = await api.new_person("bert@example.com")
    await api.log_in(anna.email, "wrong")
    assert await events(api, bert) == ["sign_in.succeeded"]


async def test_it_is_kept_for_90_days(api: Api, anna: Person, database: asyncpg.Connection) -> None:
    api.clock.ahead = timedelta(days=91)
    anna = await api.signed_in(anna.email)
    assert await events(api, anna) == ["sign_in.succeeded"]
    await database.execute("UPDATE security_events SET occurred_at = occurred_at - interval '91 d'")
    await Housekeeping(api.app[DATABASE], api.clock).tidy_up()
    assert await database.fetchval("SELECT count(*) FROM security_events") == 0


async def test_erasing_the_account_removes_it(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    erased = await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    assert erased.status == 204
    assert await database.fetchval("SELECT count(*) FROM security_events") == 0


@pytest.mark.parametrize(
    ("email", "password", "reason"),
    [
        ("anna@example.com", "wrong", "wrong-password"),
        ("nobody@example.com", PASSWORD, "unknown-email"),
        ("no address", PASSWORD, "unknown-email"),
    ],
)
async def test_a_failed_sign_in_is_one_line_that_names_nobody(
    api: Api,
    anna: Person,
    caplog: pytest.LogCaptureFixture,
    email: str,
    password: str,
    reason: str,
) -> None:
    with caplog.at_level(logging.INFO, "service.security"):
        await api.post(
            "/auth/login",
            {"email": email, "password": password},
            headers={"X-Request-Id": "request-1"},
        )
    [line] = [record for record in caplog.records if record.name == "service.security"]
    assert line.getMessage() == "sign_in.failed"
    told = vars(line)
    assert told["reason"] == reason
    assert told["address"] == "127.0.0.0/24"
    assert told["request_id"] == "request-1"
    assert len(told["account"]) == 16
    assert email not in str(told)
