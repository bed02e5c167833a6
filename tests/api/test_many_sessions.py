"""Many sessions of one user: how many are open at most, and how so many end."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import asyncpg
import pytest
from redis.asyncio import Redis

from service.api.http.app_keys import SERVICES
from service.domain.sessions import ENDED_KEPT_FOR
from service.redis.cache import REMOVED_AT_ONCE, Cache, Entry
from service.redis.client import RedisClient, Reply
from service.repositories.sessions import MOST_AT_ONCE
from service.use_cases.cache_invalidation import KEYS_OF_A_JOB
from service.use_cases.housekeeping import Housekeeping
from tests.factories import PASSWORD, Api, Person
from tests.oauth import new_application

NEW_PASSWORD: Final = "another walk by the sea"

# Each began a second before the next one, the last one now.
MORE_SESSIONS: Final = """
    INSERT INTO sessions (session_id, user_id, created_at, refreshed_at, expires_at, ended_at)
    SELECT gen_random_uuid(), $1::uuid, at, at, now() + interval '1 day', $3::timestamptz
      FROM (SELECT now() - number * interval '1 second' AS at
              FROM generate_series(0, $2::int - 1) AS number) AS earlier
"""
OPEN: Final = "SELECT count(*) FROM sessions WHERE ended_at IS NULL"


async def began_long_ago(database: asyncpg.Connection) -> None:
    await database.execute("UPDATE sessions SET created_at = created_at - interval '1 hour'")


async def test_of_more_than_100_sessions_the_oldest_ends(
    api: Api,
    other: Api,
    anna: Person,
    database: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Everywhere, before the answer to the sign-in."""
    await began_long_ago(database)
    await database.execute(MORE_SESSIONS, anna.user_id, 98, None)
    bert = await api.new_person()
    hundredth = await api.signed_in(anna.email)
    assert (await other.get("/users/me", by=anna)).status == 200
    caplog.clear()
    with caplog.at_level(logging.INFO, "service.security"):
        newest = await api.signed_in(anna.email)
    for process in (api, other):
        assert (await process.get("/users/me", by=anna)).status == 401
        for person in (hundredth, newest, bert):
            assert (await process.get("/users/me", by=person)).status == 200
    refreshed = await api.post("/auth/refresh", {"refresh_token": anna.refresh_token})
    assert refreshed.status == 401
    assert await database.fetchval(f"{OPEN} AND user_id = $1", anna.user_id) == 100
    ended = [line for line in caplog.records if line.getMessage() == "session.ended"]
    assert [vars(line)["reason"] for line in ended] == ["too-many"]
    activity = (await api.get("/users/me/activity", by=newest)).json()["items"]
    assert [item["event"] for item in activity].count("session.ended") == 1


async def test_sessions_that_have_ended_or_expired_are_not_among_them(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    await database.execute(MORE_SESSIONS, anna.user_id, 20, None)
    await database.execute(
        "UPDATE sessions SET created_at = now() - interval '2 h', expires_at = now()"
        " WHERE user_agent IS NULL"
    )
    await database.execute(MORE_SESSIONS, anna.user_id, 20, api.clock())
    await database.execute(MORE_SESSIONS, anna.user_id, 98, None)
    newest = await api.signed_in(anna.email)
    activity = (await api.get("/users/me/activity", by=newest)).json()["items"]
    assert "session.ended" not in [item["event"] for item in activity]
    assert await database.fetchval(f"{OPEN} AND expires_at > now()") == 100
    assert (await api.get("/users/me", by=anna)).status == 200


async def test_of_parallel_sign_ins_100_sessions_are_left(
    api: Api, other: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """The lock on the user's row (INSERT): each sees the sessions of those before it."""
    await database.execute(MORE_SESSIONS, anna.user_id, 95, None)
    people = await asyncio.gather(*(process.signed_in(anna.email) for process in [api, other] * 10))
    assert await database.fetchval(OPEN) == 100
    for person in people:
        assert (await other.get("/users/me", by=person)).status == 200


async def test_what_applications_begin_counts_too(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    application = await new_application(api)
    await began_long_ago(database)
    await database.execute(MORE_SESSIONS, anna.user_id, 99, None)
    assert (await api.get("/users/me", by=anna)).status == 200
    tokens = await application.tokens_of(anna)
    assert (await api.get("/users/me", by=anna)).status == 401
    assert await application.is_alive(tokens)
    assert await database.fetchval(OPEN) == 100


async def test_applications_that_redeem_at_one_instant_wait_for_each_other(
    api: Api, anna: Person
) -> None:
    """With a share lock on the user's row (LOCK_USER) two would wait until PostgreSQL ends one."""
    application = await new_application(api)
    codes = [await application.code_of(anna) for _ in range(8)]
    async with asyncio.timeout(0.9):  # PostgreSQL looks for a deadlock after a second
        answers = await asyncio.gather(*map(application.redeem, codes))
    assert [answer.status for answer in answers] == [200] * 8


# Ending many.

WATCHED: Final = [
    ("sessions", "UPDATE"),
    ("sessions", "DELETE"),
    ("security_events", "DELETE"),
    ("jobs", "INSERT"),
]


async def changed(database: asyncpg.Connection) -> dict[str, list[int]]:
    """Return how many rows each statement has changed, by table and verb."""
    sizes: dict[str, list[int]] = {}
    for what, rows in await database.fetch("SELECT what, rows FROM changes"):
        sizes.setdefault(what, []).append(rows)
    return sizes


@asynccontextmanager
async def watched(database: asyncpg.Connection) -> AsyncIterator[None]:
    """Note of each statement how many rows it changes, and of each job how many keys it has."""
    await database.execute(
        "CREATE TABLE changes (what text, rows int);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        "  INSERT INTO changes SELECT TG_TABLE_NAME || ' ' || TG_OP, count(*) FROM changed;"
        "  RETURN NULL; END $$;"
        "CREATE FUNCTION note_keys() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        "  INSERT INTO changes VALUES ('keys', jsonb_array_length(NEW.payload));"
        "  RETURN NULL; END $$;"
        "CREATE TRIGGER note_keys AFTER INSERT ON jobs FOR EACH ROW"
        "  WHEN (NEW.kind = 'forget') EXECUTE FUNCTION note_keys();"
    )
    for table, verb in WATCHED:
        kind = "OLD" if verb == "DELETE" else "NEW"
        await database.execute(
            f"CREATE TRIGGER note_{verb} AFTER {verb} ON {table}"
            f" REFERENCING {kind} TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION note()"
        )
    try:
        yield
    finally:
        await database.execute(
            "DROP FUNCTION note CASCADE; DROP FUNCTION note_keys CASCADE; DROP TABLE changes"
        )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many cache keys each call of Redis removes: with value, lease and lasting name."""
    counted: list[int] = []
    delete = RedisClient.delete

    def count(self: RedisClient, *names: str) -> Reply:
        counted.append(len(names) // 3)
        return delete(self, *names)

    monkeypatch.setattr(RedisClient, "delete", count)
    return counted


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "/auth/sessions", None),
        (
            "POST",
            "/auth/password/change",
            {"current_password": PASSWORD, "new_password": NEW_PASSWORD},
        ),
        ("DELETE", "/users/me", {"password": PASSWORD}),
    ],
)
async def test_20_000_sessions_end_in_small_steps_and_look_ups_go_on_meanwhile(
    api: Api,
    anna: Person,
    database: asyncpg.Connection,
    calls: list[int],
    method: str,
    path: str,
    body: dict[str, str] | None,
) -> None:
    bert = await api.new_person()
    await api.new_code(bert)
    await database.execute(MORE_SESSIONS, anna.user_id, 20_000, None)
    async with watched(database):
        calls.clear()
        ending = asyncio.create_task(api.call(method, path, body, by=anna))
        looked_up = 0
        while not ending.done():
            assert (await api.get(f"/referral-code/{bert.email}")).status == 200
            assert (await api.get("/users/me", by=bert)).status == 200
            assert not api.app[SERVICES].redis.away
            looked_up += 1
        assert ending.result().status == 204
        sizes = await changed(database)
    assert looked_up >= 20
    of_sessions = sizes["sessions UPDATE" if path != "/users/me" else "sessions DELETE"]
    assert max(of_sessions) == MOST_AT_ONCE
    assert sum(of_sessions) == 20_000 + (path == "/users/me")
    assert max(sizes["keys"]) == KEYS_OF_A_JOB
    assert sum(sizes["keys"]) >= 20_000
    assert max(calls) == REMOVED_AT_ONCE
    kept = await database.fetchval(f"{OPEN} AND user_id = $1", anna.user_id)
    assert kept == (path != "/users/me")


async def test_what_strangers_have_caused_is_erased_in_small_steps(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    bert = await api.new_person()
    await database.execute(
        "INSERT INTO security_events (security_event_id, user_id, event, occurred_at)"
        " SELECT gen_random_uuid(), $1::uuid, 'sign_in.failed', now() - number % 7 * interval '1 s'"
        "   FROM generate_series(1, 2500) AS number",
        anna.user_id,
    )
    async with watched(database):
        erased = await api.delete("/users/me", {"password": PASSWORD}, by=anna)
        assert erased.status == 204
        assert (await changed(database))["security_events DELETE"] == [1000, 1000, 502]
    left = await database.fetch("SELECT user_id::text FROM security_events")
    assert {row["user_id"] for row in left} == {bert.user_id}


async def test_all_keys_are_forgotten_however_many_they_are(api: Api, redis: Redis) -> None:
    cache = Cache(api.app[SERVICES].redis, api.clock)
    keys = [f"code:{number}" for number in range(2 * REMOVED_AT_ONCE + 1)]

    async def load() -> Entry:
        return Entry(b"value", api.clock() + timedelta(hours=1))

    for key in keys:
        await cache.read_through(key, load)
    await cache.forget(keys)
    assert [key async for key in redis.scan_iter("*{code:*", count=1000)] == []


async def test_a_backlog_of_keys_is_worked_off_in_small_steps(
    api: Api, database: asyncpg.Connection, calls: list[int]
) -> None:
    payload = json.dumps([f"session:{number}" for number in range(KEYS_OF_A_JOB)])
    await database.execute(
        "INSERT INTO jobs (job_id, kind, payload, created_at)"
        " SELECT gen_random_uuid(), 'forget', $1, now() FROM generate_series(1, 50)",
        payload,
    )
    async with asyncio.timeout(10):
        while await database.fetchval("SELECT count(*) FROM jobs"):
            await asyncio.sleep(0.05)
    assert max(calls) == REMOVED_AT_ONCE


# What is left of them.


async def test_sessions_that_have_ended_are_kept_for_a_day(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    await database.execute(MORE_SESSIONS, anna.user_id, 2500, api.clock())
    housekeeping = Housekeeping(api.app[SERVICES].database, api.clock)
    api.clock.ahead = ENDED_KEPT_FOR - timedelta(minutes=1)
    await housekeeping.tidy_up()
    assert await database.fetchval("SELECT count(*) FROM sessions") == 2501
    api.clock.ahead = ENDED_KEPT_FOR + timedelta(minutes=1)
    await database.execute("UPDATE sessions SET expires_at = now() + interval '9 days'")
    await housekeeping.tidy_up()
    assert await database.fetchval("SELECT count(*) FROM sessions") == 1


async def test_housekeeping_waits_for_nobody_and_leaves_what_others_hold(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    await database.execute(MORE_SESSIONS, anna.user_id, 3, None)
    await database.execute(MORE_SESSIONS, anna.user_id, 3, api.clock() - ENDED_KEPT_FOR)
    await database.execute(
        "UPDATE sessions SET created_at = now() - interval '2 h',"
        " expires_at = now() - interval '1 h' WHERE ended_at IS NULL"
    )
    async with database.transaction():
        held = {
            await database.fetchval(
                f"SELECT session_id FROM sessions WHERE ended_at IS {state} LIMIT 1 FOR UPDATE"
            )
            for state in ("NULL", "NOT NULL")
        }
        await Housekeeping(api.app[SERVICES].database, api.clock).tidy_up()
        left = await database.fetch("SELECT session_id FROM sessions")
        assert {row["session_id"] for row in left} == held
