"""The servers and the service that the tests share.

PostgreSQL and Valkey are real: those of DATABASE_URL and REDIS_URL, or embedded ones. They are
started and migrated once for each process; after each test all rows and keys are removed.
"""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psycopg
import pytest
from redis.asyncio import Redis

from service import embedded
from service.postgresql.migrations import apply_migrations
from service.settings.settings import Settings, read_settings
from tests.factories import Api, new_secrets, running


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes share the tests: each has servers of its own.

    Given servers are for one process: others would empty its tables.
    """
    given = os.environ.get("DATABASE_URL") or os.environ.get("REDIS_URL")
    return 0 if given else os.cpu_count() or 1


@dataclass(frozen=True)
class Servers:
    """Where PostgreSQL and Valkey listen, and the tables that tests write to."""

    database_url: str
    redis_url: str
    tables: tuple[str, ...]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Start what the environment does not name, and migrate."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tests-")))
        database_url = os.environ.get("DATABASE_URL") or stack.enter_context(
            embedded.postgresql(folder, durable=False)
        )
        redis_url = os.environ.get("REDIS_URL") or stack.enter_context(embedded.valkey(folder))
        apply_migrations(database_url)
        with psycopg.connect(database_url) as connection:
            found = connection.execute(
                "SELECT quote_ident(tablename) FROM pg_tables"
                " WHERE schemaname = 'public' AND tablename NOT LIKE '%yoyo%'"
            ).fetchall()
        yield Servers(database_url, redis_url, tuple(name for (name,) in found))


DEFAULT_PROGRAMME = """
INSERT INTO programmes (programme_id, key, name, version, created_at)
VALUES ('00000000-0000-7000-8000-000000000001', 'default', 'Default', 1, now());
INSERT INTO programme_versions (programme_id, version, rules, made_by, created_at)
VALUES ('00000000-0000-7000-8000-000000000001', 1,
        '{"qualify":{"on":"signup"},"rewards":[]}', 'system', now());
"""
"""The rows that the migrations leave."""


def empty(tables: Sequence[str]) -> str:
    """Return SQL that removes all rows: TRUNCATE makes new files, which takes ten times as long.

    It locks first, because an abandoned request may still be writing. It deletes in one statement,
    because foreign keys are checked when that ends.
    """
    deletes = ", ".join(f"of_{name} AS (DELETE FROM {name})" for name in tables)
    return f"LOCK TABLE {', '.join(tables)}; WITH {deletes} SELECT; {DEFAULT_PROGRAMME}"


@pytest.fixture(scope="session")
def environment(servers: Servers) -> dict[str, str]:
    """The environment of a service under test: cheap hashes, no rate limits."""
    return {
        **new_secrets(),
        "DATABASE_URL": servers.database_url,
        "REDIS_URL": servers.redis_url,
        "ARGON2_MEMORY_KIB": "64",
        "ARGON2_PASSES": "1",
        "RATE_LIMIT_REGISTER": "off",
        "RATE_LIMIT_LOGIN": "off",
        "RATE_LIMIT_LOOKUP": "off",
        "RATE_LIMIT_MAIL": "off",
        "RATE_LIMIT_VERIFICATION": "off",
        "RATE_LIMIT_WRITE": "off",
    }


@pytest.fixture(scope="session")
def settings(environment: dict[str, str]) -> Settings:
    return read_settings(environment)


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[asyncpg.Connection]:
    """A connection to prepare and inspect data with; afterwards the tables are emptied."""
    connection = await asyncpg.connect(servers.database_url)
    try:
        yield connection
    finally:
        await connection.execute(empty(servers.tables))
        await connection.close()


@pytest.fixture
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    """A client to inspect and change keys with; afterwards all keys are removed."""
    client = Redis.from_url(servers.redis_url, decode_responses=True)
    try:
        yield client
    finally:
        await client.flushdb()
        await client.aclose()


@pytest.fixture
async def api(settings: Settings, database: asyncpg.Connection, redis: Redis) -> AsyncIterator[Api]:
    """A running service and its client."""
    async with running(settings) as client:
        yield client
