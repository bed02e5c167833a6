"""What operators' tools ask: is it alive, can it answer."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from redis.asyncio import Redis

from service.postgresql.migration_files import names_of_migrations
from service.settings.settings import Settings
from tests.engines import redis_trouble
from tests.factories import Api, running

NO_POSTGRESQL = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="service"):
        yield caplog


async def test_it_is_alive_and_ready(api: Api) -> None:
    live = await api.get("//health/live")
    assert (live.status, live.json()) == (200, {"status": "ok"})
    ready = await api.get("//health/ready")
    assert ready.status == 200
    assert ready.json() == {"status": "ok", "checks": {"postgresql": "ok", "redis": "ok"}}


async def test_without_postgresql_it_is_alive_and_not_ready(
    settings: Settings, redis: Redis
) -> None:
    async with running(replace(settings, database_url=NO_POSTGRESQL)) as api:
        assert (await api.get("//health/live")).status == 200
        ready = await api.get("//health/ready")
        assert ready.status == 503
        assert ready.headers["Content-Type"] == "application/problem+json"
        assert ready.headers["Retry-After"] == "1"
        assert ready.json()["code"] == "database-unavailable"
        assert ready.json()["checks"]["postgresql"] == "down"
        assert b"127.0.0.1" not in ready.body


async def test_redis_is_not_called_down_because_postgresql_is(
    settings: Settings, redis: Redis, log: pytest.LogCaptureFixture
) -> None:
    async with running(replace(settings, database_url=NO_POSTGRESQL)) as api:
        ready = await api.get("//health/ready")
        assert ready.json()["checks"] == {"postgresql": "down", "redis": "ok"}
        async with asyncio.timeout(10):
            while not any("PostgreSQL is away" in line for line in log.messages):
                await asyncio.sleep(0.02)
    assert not any("Redis" in line for line in log.messages)


async def test_on_a_schema_that_lacks_a_migration_it_is_not_ready(
    own_database: Settings, redis: Redis
) -> None:
    newest = names_of_migrations()[-1]
    async with running(own_database) as api:
        assert (await api.get("//health/ready")).status == 200
        with psycopg.connect(own_database.database_url, autocommit=True) as connection:
            connection.execute(f"DELETE FROM _yoyo_migration WHERE migration_id = '{newest}'")
            ready = await api.get("//health/ready")
            assert (ready.status, ready.json()["code"]) == (503, "migrations-pending")
            assert newest in ready.json()["detail"]
            assert ready.headers["Retry-After"] == "5"
            assert (await api.get("//health/live")).status == 200
            connection.execute("DROP TABLE _yoyo_migration")
            everything = await api.get("//health/ready")
            assert (everything.status, everything.json()["code"]) == (503, "migrations-pending")
            assert all(name in everything.json()["detail"] for name in names_of_migrations())


async def test_a_right_that_was_taken_away_is_503_and_no_secret(
    own_database: Settings, redis: Redis
) -> None:
    role = f"role_{uuid4().hex}"
    with psycopg.connect(own_database.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        try:
            url = own_database.database_url.replace("//postgres@", f"//{role}@")
            async with running(replace(own_database, database_url=url)) as api:
                assert (await api.get("//health/ready")).status == 200
                connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}")
                for answer in (await api.get("//health/ready"), await api.register()):
                    assert (answer.status, answer.json()["code"]) == (503, "database-unavailable")
                    assert b"permission" not in answer.body
        finally:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")


async def test_without_redis_it_is_ready_and_degraded(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with redis_trouble.refusing("") as url, running(replace(settings, redis_url=url)) as api:
        ready = await api.get("//health/ready")
        assert ready.status == 200
        checks = {"postgresql": "ok", "redis": "down"}
        assert ready.json() == {"status": "degraded", "checks": checks}


async def test_without_either_both_are_named(settings: Settings) -> None:
    async with redis_trouble.refusing("") as url:
        alone = replace(settings, database_url=NO_POSTGRESQL, redis_url=url)
        async with running(alone) as api:
            ready = await api.get("//health/ready")
            assert ready.status == 503
            assert ready.json()["checks"] == {"postgresql": "down", "redis": "down"}
