"""A live code gets another expiry or limit, and keeps its uses."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest

from service.settings.settings import Settings
from tests.api.assertions import assert_problem
from tests.api.conftest import replacing_the_only_code
from tests.factories import Answer, Api, Person
from tests.sql.racing import until_blocked

DAYS: Final = {"expires_in_days": 7}


async def change(api: Api, owner: Person, **members: Any) -> Answer:
    return await api.patch("/referral-code", members, by=owner)


async def seen_by_anyone(api: Api, owner: Person) -> str | None:
    """Return the expiry that a look-up gives, None if it finds no code."""
    found = await api.get(f"/referral-code/{owner.email}")
    return found.json()["expires_at"] if found.status == 200 else None


async def test_a_live_code_is_extended_and_keeps_its_uses(api: Api, anna: Person) -> None:
    code = await api.new_code(anna, expires_in_days=1)
    await api.register(referral_code=code)
    before = (await api.get("/referral-code", by=anna)).json()
    changed = await change(api, anna, expires_in_days=30)
    assert changed.status == 200
    assert "Location" not in changed.headers
    after = changed.json()
    expires_at = datetime.fromisoformat(after.pop("expires_at"))
    assert timedelta() <= datetime.now(UTC) + timedelta(days=30) - expires_at < timedelta(minutes=1)
    del before["expires_at"]
    assert after == before
    assert after["uses"] == 1
    api.clock.ahead = timedelta(days=2)
    assert (await api.register(referral_code=code)).status == 201


@pytest.mark.parametrize(
    "members",
    [
        {"expires_at": "2027-01-31T09:30:00+01:00"},
        {"expires_at": "2027-01-31T08:30:00Z", "expires_in_days": None, "max_uses": None},
        {"expires_at": "2027-01-31T08:30:00Z", "max_uses": 3.0},
    ],
)
async def test_what_is_left_out_or_null_stays_as_it_is(
    api: Api, anna: Person, members: dict[str, Any]
) -> None:
    api.clock.ahead = datetime(2027, 1, 1, tzinfo=UTC) - datetime.now(UTC)
    anna = await api.signed_in(anna.email)
    made = (await api.post("/referral-code", {**DAYS, "max_uses": 3}, by=anna)).json()
    changed = await change(api, anna, **members)
    assert changed.json() == {**made, "expires_at": "2027-01-31T08:30:00Z"}
    assert (await api.get("/referral-code", by=anna)).json() == changed.json()
    limited = await change(api, anna, max_uses=5)
    assert limited.json() == {**changed.json(), "max_uses": 5}


@pytest.mark.parametrize(
    ("members", "pointers"),
    [
        ({}, ["#"]),
        ({"expires_at": None}, ["#"]),
        ({"expires_at": None, "expires_in_days": None, "max_uses": None}, ["#"]),
        ({"expires_at": "2027-01-31T09:30:00Z", "expires_in_days": 7}, ["#/expires_at"]),
        ({"expires_at": "2001-01-01T00:00:00Z"}, ["#/expires_at"]),
        ({"expires_at": "2999-01-01T00:00:00Z"}, ["#/expires_at"]),
        ({"expires_at": "tomorrow"}, ["#/expires_at"]),
        ({"expires_in_days": 0}, ["#/expires_in_days"]),
        ({"expires_in_days": 367}, ["#/expires_in_days"]),
        ({"expires_in_days": "7"}, ["#/expires_in_days"]),
        ({"expires_in_days": 1.5}, ["#/expires_in_days"]),
        ({"max_uses": 0}, ["#/max_uses"]),
        ({"max_uses": 10**9 + 1}, ["#/max_uses"]),
        ({"max_uses": True}, ["#/max_uses"]),
        ({"max_uses": 0, "expires_in_days": 0}, ["#/max_uses", "#/expires_in_days"]),
        ({"code": "OTHER-1"}, ["#/code", "#"]),
        ({"max_uses": 9, "uses": 0}, ["#/uses"]),
        ({"max_uses": 2}, ["#/max_uses"]),
    ],
)
async def test_a_change_that_breaks_a_rule_changes_nothing(
    api: Api, anna: Person, members: dict[str, Any], pointers: list[str]
) -> None:
    code = await api.new_code(anna)
    for _ in range(3):
        await api.register(referral_code=code)
    before = (await api.get("/referral-code", by=anna)).json()
    assert_problem(await change(api, anna, **members), 422, "validation-failed", pointers)
    assert (await api.get("/referral-code", by=anna)).json() == before


async def test_what_is_no_object_is_refused(api: Api, anna: Person) -> None:
    bodies: list[Any] = [[], "max_uses", 5]
    for body in bodies:
        answer = await api.patch("/referral-code", body, by=anna)
        assert_problem(answer, 422, "validation-failed", ["#"])


async def test_only_a_live_code_can_be_changed(api: Api, anna: Person) -> None:
    async def is_not_found() -> None:
        answer = await change(api, anna, **DAYS)
        assert_problem(answer, 404, "referral-code-not-found")

    await is_not_found()
    await api.new_code(anna)
    await api.delete("/referral-code", by=anna)
    await is_not_found()
    code = await api.new_code(anna, max_uses=1)
    await api.register(referral_code=code)
    await is_not_found()
    await api.new_code(anna, expires_in_days=1)
    api.clock.ahead = timedelta(days=1, seconds=1)
    anna = await api.signed_in(anna.email)
    await is_not_found()


@pytest.mark.parametrize("wish", [{}, {"max_uses": 9}], ids=["unlimited", "limited"])
async def test_a_limit_counts_what_was_used_before(
    api: Api, anna: Person, wish: dict[str, int], database: asyncpg.Connection
) -> None:
    """The uses without a limit are in slots, from where they move to the code's row."""
    code = await api.new_code(anna, **wish)
    for _ in range(3):
        await api.register(referral_code=code)
    for below in (1, 2):
        answer = await change(api, anna, max_uses=below)
        assert_problem(answer, 422, "validation-failed", ["#/max_uses"])
    changed = (await change(api, anna, max_uses=5)).json()
    assert (changed["uses"], changed["max_uses"]) == (3, 5)
    assert (await api.get("/referral-code", by=anna)).json() == changed
    answers = await asyncio.gather(*(api.register(referral_code=code) for _ in range(6)))
    assert sorted(answer.status for answer in answers) == [201] * 2 + [422] * 4
    assert await database.fetchval("SELECT uses FROM referral_codes") == 5
    assert await database.fetchval("SELECT count(*) FROM referrals") == 5


@pytest.mark.parametrize("wish", [{}, {"max_uses": 9}], ids=["unlimited", "limited"])
async def test_a_limit_that_the_uses_have_reached_uses_the_code_up(
    api: Api, anna: Person, wish: dict[str, int]
) -> None:
    code = await api.new_code(anna, **wish)
    for _ in range(2):
        await api.register(referral_code=code)
    assert await seen_by_anyone(api, anna)  # and kept
    changed = await change(api, anna, max_uses=2)
    assert (changed.status, changed.json()["uses"], changed.json()["max_uses"]) == (200, 2, 2)
    assert (await api.get("/referral-code", by=anna)).status == 404
    assert await seen_by_anyone(api, anna) is None
    assert (await api.register(referral_code=code)).status == 422
    listed = (await api.get("/referral-codes", by=anna)).json()["items"]
    assert [item["state"] for item in listed] == ["used-up"]
    assert (await api.post("/referral-code", DAYS, by=anna)).status == 201


async def test_after_the_answer_to_a_change_no_process_gives_the_old_expiry(
    api: Api, other: Api
) -> None:
    """As it is for every other write: what the cache has is removed before the answer."""
    owner = await api.new_person()
    await api.new_code(owner)
    for days in range(1, 30):
        before = await seen_by_anyone(other, owner)
        expires_at = (await change(api, owner, expires_in_days=days)).json()["expires_at"]
        assert expires_at != before
        assert await seen_by_anyone(other, owner) == expires_at
        assert await seen_by_anyone(api, owner) == expires_at


# At the same instant.


async def test_no_use_is_lost_when_a_limit_comes_beside_registrations(
    api: Api, other: Api, database: asyncpg.Connection
) -> None:
    """The lock on the code's row: LOCK_LIVE waits for those that count in slots, and the uses are
    read after it. A registration that has waited for it begins anew, and counts in the row."""
    for _ in range(5):
        owner = await api.new_person()
        code = await api.new_code(owner)
        changed, *answers = await asyncio.gather(
            other.patch("/referral-code", {"max_uses": 20}, by=owner),
            *(process.register(referral_code=code) for process in [api, other] * 6),
        )
        assert changed.status == 200
        assert {answer.status for answer in answers} == {201}
        shown = (await api.get("/referral-code", by=owner)).json()
        assert (shown["uses"], shown["max_uses"]) == (12, 20)
        limits = [other.patch("/referral-code", {"max_uses": uses}, by=owner) for uses in (15, 14)]
        results = await asyncio.gather(
            *limits, *(process.register(referral_code=code) for process in [api, other] * 5)
        )
        uses = await database.fetchval("SELECT uses FROM referral_codes WHERE code = $1", code)
        counted = await database.fetchval("SELECT count(*) FROM referrals WHERE code = $1", code)
        assert uses == counted
        assert uses in {14, 15, 20}
        assert {result.status for result in results[2:]} == {201, 422}


async def test_changes_beside_replacements_and_deletions_change_the_live_code_or_none(
    api: Api, other: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """The lock says which code it is: one that took its place meanwhile is locked in its turn."""

    async def call_both(method: str, body: dict[str, int]) -> set[int]:
        answers = await asyncio.gather(
            *(process.call(method, "/referral-code", body, by=anna) for process in [api, other])
        )
        return {answer.status for answer in answers}

    for _ in range(5):
        await api.put("/referral-code", DAYS, by=anna)
        changed, replaced = await asyncio.gather(
            call_both("PATCH", {"max_uses": 7}), call_both("PUT", DAYS)
        )
        assert (changed, replaced) == ({200}, {200})
        shown = (await api.get("/referral-code", by=anna)).json()
        found = (await other.get(f"/referral-code/{anna.email}")).json()
        assert (found["code"], found["expires_at"]) == (shown["code"], shown["expires_at"])
        changed, deleted = await asyncio.gather(
            call_both("PATCH", {"max_uses": 8}), api.delete("/referral-code", by=anna)
        )
        assert changed <= {200, 404}
        assert deleted.status == 204
        assert await seen_by_anyone(other, anna) is None
    live = "SELECT count(*) FROM referral_codes WHERE ended_at IS NULL"
    assert await database.fetchval(live) == 0


async def test_a_change_that_waits_for_a_replacement_changes_the_new_code(
    api: Api, settings: Settings, anna: Person, database: asyncpg.Connection
) -> None:
    await api.new_code(anna)
    async with replacing_the_only_code(settings):
        changing = await until_blocked(database, change(api, anna, max_uses=7))
    changed = (await changing).json()
    assert (changed["code"], changed["max_uses"]) == ("NEW-CODE", 7)
    assert (await api.get("/referral-code", by=anna)).json() == changed


async def test_a_registration_finds_a_code_that_is_replaced_by_one_of_its_name(
    api: Api, other: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """The name is live all the time, though the row that the registration waits for ends."""
    await api.new_code(anna, code="ANNA-2026")
    for _ in range(5):
        replaced, *registered = await asyncio.gather(
            api.put("/referral-code", {**DAYS, "code": "ANNA-2026"}, by=anna),
            *(process.register(referral_code="ANNA-2026") for process in [api, other] * 4),
        )
        assert replaced.status == 200
        assert {answer.status for answer in registered} == {201}
    listed = (await api.get("/referral-codes", by=anna)).json()["items"]
    assert sum(item["uses"] for item in listed) == 40
    assert await database.fetchval("SELECT count(*) FROM referrals") == 40
