"""The owner's codes, those that have ended too; and whether a code that was typed is live."""

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain.rate_limits import RateLimit
from service.domain.referral_codes import UNUSED_KEPT_FOR
from service.settings.settings import Settings
from service.use_cases.housekeeping import Housekeeping
from tests.api.assertions import assert_problem
from tests.api.wire import request, send
from tests.factories import Api, Person, running

DAYS: Final = {"expires_in_days": 7}
MEMBERS: Final = {*("code", "created_at", "expires_at", "max_uses", "uses"), *("state", "ended_at")}


async def listed(api: Api, owner: Person, query: str = "") -> list[dict[str, Any]]:
    answer = await api.get(f"/referral-codes{query}", by=owner)
    assert answer.status == 200, answer.body
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def five_codes(api: Api, owner: Person) -> list[str]:
    """Make a code that expires, one that is deleted, replaced, used up, and one that lives."""
    codes = [await api.new_code(owner, expires_in_days=1)]
    await api.register(referral_code=codes[0])
    api.clock.ahead += timedelta(days=2)
    codes.append(await api.new_code(owner, max_uses=5))
    await api.delete("/referral-code", by=owner)
    codes.append(await api.new_code(owner))
    replaced = await api.put("/referral-code", {**DAYS, "max_uses": 1}, by=owner)
    codes.append(replaced.json()["code"])
    await api.register(referral_code=codes[3])
    codes.append(await api.new_code(owner))
    return codes


STATES: Final = ["expired", "deleted", "replaced", "used-up", "live"]


@pytest.fixture
async def long_sessions(settings: Settings, database: asyncpg.Connection, redis: object) -> Any:
    """A service whose access tokens outlive what the tests wait for."""
    async with running(replace(settings, access_token_ttl=timedelta(days=30))) as api:
        yield api


async def test_all_codes_are_listed_newest_first_with_what_became_of_them(
    long_sessions: Api, database: asyncpg.Connection
) -> None:
    api = long_sessions
    anna = await api.new_person()
    assert await listed(api, anna) == []
    codes = await five_codes(api, anna)
    await api.new_code(await api.new_person())
    items = await listed(api, anna)
    for item in items:
        assert set(item) == MEMBERS
    assert [item["code"] for item in items] == codes[::-1]
    assert [item["state"] for item in items] == STATES[::-1]
    assert [item["uses"] for item in items] == [0, 1, 0, 0, 1]
    assert [item["max_uses"] for item in items] == [None, 1, None, 5, None]
    live, used_up, replaced, deleted, expired = items
    assert live["ended_at"] is None
    assert expired["ended_at"] == expired["expires_at"]
    assert replaced["ended_at"] == used_up["created_at"]
    assert deleted["created_at"] < deleted["ended_at"] < deleted["expires_at"]
    assert used_up["created_at"] < used_up["ended_at"] < used_up["expires_at"]
    shown = (await api.get("/referral-code", by=anna)).json()
    assert {name: live[name] for name in shown} == shown
    # The release before this one stores no reason.
    await database.execute("UPDATE referral_codes SET end_reason = NULL")
    assert await listed(api, anna) == items


async def test_an_expired_code_is_listed_so_before_anything_else_happens_to_it(
    long_sessions: Api,
) -> None:
    api = long_sessions
    anna = await api.new_person()
    await api.new_code(anna, expires_in_days=1)
    api.clock.ahead = timedelta(days=1, seconds=1)
    for _ in range(2):
        [item] = await listed(api, anna)
        assert item["state"] == "expired"
        assert item["ended_at"] == item["expires_at"]
        assert (await api.delete("/referral-code", by=anna)).status == 404


async def test_pages_have_every_code_once(api: Api, anna: Person) -> None:
    made = [await api.put("/referral-code", DAYS, by=anna) for _ in range(5)]
    codes = [answer.json()["code"] for answer in made]
    read: list[str] = []
    cursor = ""
    while True:
        page = (await api.get(f"/referral-codes?limit=2{cursor}", by=anna)).json()
        assert len(page["items"]) <= 2
        read += [item["code"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert read == codes[::-1]
    for query, pointer in (
        ("limit=0", "#/limit"),
        ("limit=101", "#/limit"),
        ("cursor=x", "#/cursor"),
    ):
        answer = await api.get(f"/referral-codes?{query}", by=anna)
        assert_problem(answer, 422, "validation-failed", [pointer])


async def test_the_list_is_its_owners_alone(api: Api, anna: Person) -> None:
    await api.new_code(anna)
    assert await listed(api, await api.new_person()) == []
    assert_problem(await api.get("/referral-codes"), 401, "not-authenticated")


# Housekeeping.


async def test_a_code_that_nobody_used_goes_long_after_it_has_ended(
    long_sessions: Api, database: asyncpg.Connection
) -> None:
    api = long_sessions
    anna = await api.new_person()
    codes = await five_codes(api, anna)
    housekeeping = Housekeeping(api.app[SERVICES].database, api.clock)
    api.clock.ahead += UNUSED_KEPT_FOR - timedelta(seconds=5)
    await housekeeping.tidy_up()
    stored = "SELECT code FROM referral_codes ORDER BY created_at"
    assert [row["code"] for row in await database.fetch(stored)] == codes
    api.clock.ahead += timedelta(seconds=10)
    for _ in range(2):
        await housekeeping.tidy_up()
        # The one that lived then has only expired: its owner has no more than one of these.
        assert [row["code"] for row in await database.fetch(stored)] == [
            codes[STATES.index(state)] for state in ("expired", "used-up", "live")
        ]
    assert await database.fetchval("SELECT count(*) FROM referral_codes WHERE kept") == 2
    assert await database.fetchval("SELECT count(*) FROM referral_code_names") == 5
    assert [item["state"] for item in await listed(api, await api.signed_in(anna.email))] == [
        *("expired", "used-up", "expired")
    ]


async def test_housekeeping_takes_a_thousand_at_a_time(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    await database.execute(
        "INSERT INTO referral_codes"
        " (referral_code_id, owner_id, code, created_at, expires_at, ended_at)"
        " SELECT gen_random_uuid(), user_id, 'CODE-' || n, now() - interval '1 year', now(),"
        "        now() - interval '200 days' - n * interval '1 second'"
        "   FROM users, generate_series(1, 1500) AS n"
    )
    for looked_at, left in ((1000, 500), (500, 0)):
        async with api.app[SERVICES].database.autocommit() as repositories:
            found = await repositories.referral_codes.delete_unused(api.clock() - UNUSED_KEPT_FOR)
        assert found == looked_at
        assert await database.fetchval("SELECT count(*) FROM referral_codes") == left
    assert await database.fetchval("SELECT count(*) FROM referral_code_names") == 1500


# Checking a code.


@pytest.mark.parametrize("typed", ["ANNA-2026", "anna-2026", "%20anna-2026%20", "Anna-2o26"])
async def test_anyone_can_check_a_code(api: Api, anna: Person, typed: str) -> None:
    made = await api.post("/referral-code", {**DAYS, "code": "ANNA-2026"}, by=anna)
    checked = await api.get(f"/codes/{typed}")
    assert checked.status == 200
    assert checked.json() == {"code": "ANNA-2026", "expires_at": made.json()["expires_at"]}


async def test_a_code_that_is_not_live_is_not_found(api: Api, anna: Person, admin: Person) -> None:
    async def is_not_found(code: str) -> None:
        assert_problem(await api.get(f"/codes/{code}"), 404, "referral-code-not-found")

    await is_not_found("NOBODYS-1")
    for end in ("delete", "put"):
        await api.new_code(anna, code="ANNA-2026")
        assert (await api.get("/codes/ANNA-2026")).status == 200
        await api.call(end, "/referral-code", DAYS if end == "put" else None, by=anna)
        await is_not_found("ANNA-2026")
    await api.put("/referral-code", {**DAYS, "code": "ANNA-2026", "max_uses": 1}, by=anna)
    for disabled, status in ((True, 404), (False, 200)):
        await api.patch(f"/admin/users/{anna.user_id}", {"disabled": disabled}, by=admin)
        assert (await api.get("/codes/ANNA-2026")).status == status
    await api.register(referral_code="ANNA-2026")
    await is_not_found("ANNA-2026")
    code = await api.new_code(await api.signed_in(anna.email), expires_in_days=1)
    api.clock.ahead = timedelta(days=1, seconds=1)
    await is_not_found(code)


JUNK: Final = [
    *("a", "abc", "%20", "%00", "%FF", "%ED%A0%80", "%25", "%2F", "a%2Fb-c-d", "{code}", "{}"),
    *("%7Bcode%7D", "a" * 33, "a" * 3000, "*", "' OR 1=1--", "AB_CD", "STRA%C3%9FE", "null"),
    *("me", "ABC%E2%80%8BD", "%F0%9F%99%82%F0%9F%99%82", "%zz%zz", "ABCD%0AEFGH", "+ABCD"),
]


@pytest.mark.parametrize("junk", JUNK)
async def test_nonsense_is_not_found_either(api: Api, junk: str) -> None:
    raw = request("GET", f"/api/v1/codes/{junk.replace(' ', '%20')}")
    assert_problem(await send(api, raw), 404, "referral-code-not-found")


async def test_checking_is_limited_as_looking_up_is(settings: Settings, redis: object) -> None:
    limited = replace(settings, rate_limit_lookup=RateLimit(2, 60))
    async with running(limited) as api:
        first = await api.get("/codes/NOBODYS-1")
        assert {"RateLimit", "RateLimit-Policy"} <= set(first.headers)
        assert (await api.get("/referral-code/nobody@example.com")).status == 404
        answer = await api.get("/codes/NOBODYS-1")
        assert_problem(answer, 429, "too-many-requests")
        assert int(answer.headers["Retry-After"]) > 0


async def test_head_tells_whether_a_code_lives(api: Api, anna: Person) -> None:
    code = await api.new_code(anna)
    assert (await api.call("HEAD", f"/codes/{code}")).status == 200
    assert (await api.call("HEAD", "/codes/NOBODYS-1")).status == 404
