"""Databases of their own for the tests that change the schema; rows for the others."""

from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from redis.asyncio import Redis

from service.postgresql.database import Database, connect
from service.settings.settings import Settings
from tests.conftest import Servers
from tests.sql.company import ON_PURCHASE, Company, open_company

CONNECTIONS = 24


@pytest.fixture
def empty_database(servers: Servers) -> Iterator[str]:
    """Make a database without anything in it; yield its URL."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield urlsplit(servers.database_url)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def transactions(servers: Servers, database: asyncpg.Connection) -> AsyncIterator[Database]:
    """The service's own way to the database, with connections enough for a race."""
    async with connect(servers.database_url, CONNECTIONS) as opened:
        yield opened


@pytest.fixture
async def company(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> AsyncIterator[Company]:
    """A company whose users take part in the programme `default`, under ON_PURCHASE."""
    async with open_company(settings, database) as opened:
        await opened.set_rules(ON_PURCHASE)
        yield opened
