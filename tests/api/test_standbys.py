"""Several PostgreSQL servers: a standby that answers lists, and takes the primary's place."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from redis.asyncio import Redis

from service.postgresql.database import REPLICA_RESTS_SECONDS, connect
from service.postgresql.migrations import apply_migrations
from service.settings.settings import Settings
from service.telemetry.metrics import REPLICA_READS
from tests.e2e.processes import LOOPBACK, free_port
from tests.engines.machines import Machine, Missing
from tests.engines.standbys import PostgreSQL, folder_for_servers
from tests.factories import Api, Person, running
from tests.waiting import until


@contextlib.contextmanager
def running_pair(folder: Path) -> Iterator[list[PostgreSQL]]:
    """Run a migrated primary and its standby."""
    try:
        folder = folder_for_servers(folder)
    except Missing as missing:
        pytest.skip(str(missing))
    here = Machine(LOOPBACK)
    pair = [PostgreSQL(name, here, folder, free_port()) for name in ("first", "second")]
    first, second = pair
    try:
        first.initialise()
        first.start()
        apply_migrations(first.url)
        second.copy(first, pair)
        second.start()
        while first.ask("SELECT state FROM pg_stat_replication") != "streaming":
            time.sleep(0.05)
        yield pair
    finally:
        for server in pair:
            server.kill()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[PostgreSQL]]:
    """A primary and its standby, which stay what they are."""
    with running_pair(tmp_path_factory.mktemp("pair") / "servers") as pair:
        yield pair


@pytest.fixture
def changing_pair(tmp_path: Path) -> Iterator[list[PostgreSQL]]:
    """A primary and its standby for one test alone."""
    with running_pair(tmp_path / "servers") as pair:
        yield pair


def several(servers: list[PostgreSQL], kind: str) -> str:
    hosts = ",".join(f"{LOOPBACK}:{server.port}" for server in servers)
    return f"postgresql://postgres@{hosts}/postgres?target_session_attrs={kind}"


def with_replica(settings: Settings, pair: list[PostgreSQL]) -> Settings:
    first, second = pair
    return replace(settings, database_url=first.url, database_replica_url=second.url)


@contextlib.contextmanager
def counted(result: str, times: int) -> Iterator[None]:
    """Check how often a list was wanted of the replica with this result."""
    counter = REPLICA_READS.labels(result)
    before = counter._value.get()
    yield
    assert counter._value.get() - before == times


async def caught_up(pair: list[PostgreSQL]) -> None:
    """Wait until the standby has all that the primary has written."""
    primary, standby = [await asyncpg.connect(each.url) for each in pair]
    async with asyncio.timeout(10):
        while not await standby.fetchval(
            "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn",
            await primary.fetchval("SELECT pg_current_wal_flush_lsn()::text"),
        ):
            await asyncio.sleep(0.01)
    await primary.close()
    await standby.close()


async def referrals_of(api: Api, anna: Person) -> list[Any]:
    listed = await api.get("/referrals/me", by=anna)
    assert listed.status == 200
    return [item["email"] for item in listed.json()["items"]]


async def refer(api: Api, anna: Person, code: str) -> str:
    email = f"{uuid4().hex}@example.com"
    registered = await api.register(email, referral_code=code)
    assert registered.status == 201
    return email


async def new_code(api: Api, anna: Person) -> str:
    made = await api.post("/referral-code", {"expires_in_days": 7}, by=anna)
    return str(made.json()["code"])


async def test_lists_come_from_the_replica_and_hold_what_was_just_written(
    settings: Settings, pair: list[PostgreSQL], redis: Redis
) -> None:
    shared = with_replica(settings, pair)
    async with running(shared) as api, running(shared) as other:
        anna = await api.new_person()
        code = await new_code(api, anna)
        emails: list[str] = []
        with counted("read", 10):
            for _ in range(10):
                emails.insert(0, await refer(api, anna, code))
                assert await referrals_of(other, anna) == emails  # another process knows nothing
        with counted("read", 1):
            sessions = await api.get("/auth/sessions", by=anna)
            assert len(sessions.json()["items"]) == 1


async def test_a_replica_that_is_behind_is_not_read(
    settings: Settings, pair: list[PostgreSQL], redis: Redis
) -> None:
    _, second = pair
    shared = with_replica(settings, pair)
    async with running(shared) as api, running(shared) as other:
        anna = await api.new_person()
        code = await new_code(api, anna)
        second.ask("SELECT pg_wal_replay_pause()::text")
        while second.ask("SELECT pg_get_wal_replay_pause_state()") != "paused":
            await asyncio.sleep(0.01)
        email = await refer(api, anna, code)
        with counted("behind", 2):
            for each in (api, other):
                assert await referrals_of(each, anna) == [email]
                assert await referrals_of(each, anna) == [email]  # it rests: not even asked
        second.ask("SELECT pg_wal_replay_resume()::text")
        await asyncio.sleep(REPLICA_RESTS_SECONDS + 0.1)
        with counted("read", 1):
            assert await referrals_of(api, anna) == [email]


async def test_without_the_replica_the_primary_answers(
    settings: Settings, pair: list[PostgreSQL], redis: Redis
) -> None:
    _, second = pair
    async with running(with_replica(settings, pair)) as api:
        anna = await api.new_person()
        await caught_up(pair)
        with counted("read", 1):
            assert await referrals_of(api, anna) == []
        second.server.suspend()
        begun = time.monotonic()
        with counted("away", 1):
            assert await referrals_of(api, anna) == []
        assert time.monotonic() - begun < 1
        begun = time.monotonic()
        assert await referrals_of(api, anna) == []
        assert time.monotonic() - begun < 0.2
        second.server.resume()


async def test_a_replica_that_was_promoted_is_none(
    settings: Settings, changing_pair: list[PostgreSQL], redis: Redis
) -> None:
    _, second = changing_pair
    async with running(with_replica(settings, changing_pair)) as api:
        anna = await api.new_person()
        second.promote()
        while second.ask("SELECT pg_is_in_recovery()"):
            await asyncio.sleep(0.05)
        second.ask("WITH erased AS (DELETE FROM sessions RETURNING 1) SELECT count(*) FROM erased")
        with counted("behind", 1):
            sessions = await api.get("/auth/sessions", by=anna)
        assert len(sessions.json()["items"]) == 1
        second.kill()
        await asyncio.sleep(REPLICA_RESTS_SECONDS + 0.1)
        with counted("away", 1):
            assert await referrals_of(api, anna) == []


async def test_writes_follow_the_primary(
    settings: Settings, changing_pair: list[PostgreSQL], redis: Redis
) -> None:
    """The old one does not refuse: it says nothing any more."""
    first, second = changing_pair
    url = several(changing_pair, "read-write")
    async with running(replace(settings, database_url=url)) as api:
        anna = await api.new_person()
        # Several connections, which all have to be given up.
        await asyncio.gather(*(api.get("/auth/sessions", by=anna) for _ in range(10)))
        first.server.suspend()
        second.promote()
        begun = time.monotonic()
        while (await api.register()).status != 201:
            assert time.monotonic() - begun < 8
            await asyncio.sleep(0.1)
        answers = await asyncio.gather(*(api.register() for _ in range(10)))
        assert {answer.status for answer in answers} == {201}
    assert second.ask("SELECT count(*) FROM users") == 12


async def test_a_primary_that_became_a_standby_is_left(
    settings: Settings, changing_pair: list[PostgreSQL], redis: Redis
) -> None:
    first, second = changing_pair
    url = several(changing_pair, "read-write")
    async with running(replace(settings, database_url=url)) as api:
        await api.new_person()
        readers = [api.get("//health/ready") for _ in range(10)]
        assert {answer.status for answer in await asyncio.gather(*readers)} == {200}
        first.stop()
        first.follow(changing_pair)
        second.promote()
        first.start()
        assert (await api.register("bert@example.com")).status in {201, 503}

        async def is_found() -> bool:
            answer = await api.register("carl@example.com")
            assert answer.status in {201, 503}
            return answer.status == 201

        # Not always by the first request: what runs in the background asks the database, too, and
        # while nobody answers it, requests are refused at once.
        await until(is_found, seconds=3)


async def test_the_command_line_finds_the_primary_among_several(pair: list[PostgreSQL]) -> None:
    url = several(pair[::-1], "read-write")
    assert apply_migrations(url) == []
    async with connect(url, 1) as database:
        await database.check_schema()
    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE enrichments")
        connection.execute("DELETE FROM _yoyo_migration WHERE migration_id = '0011_enrichments'")
    assert apply_migrations(url) == ["0011_enrichments"]
