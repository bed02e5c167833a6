"""What several tests of the contract start from."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import psycopg
import pytest

from service.migrations import apply_migrations
from service.settings import Settings
from tests.conftest import Servers
from tests.factories import Api, Person, running


@pytest.fixture
async def other(api: Api, settings: Settings) -> AsyncIterator[Api]:
    """Another process of the service, as far as its memory goes, on the same servers."""
    async with running(settings) as other:
        yield other


@pytest.fixture
async def anna(api: Api) -> Person:
    return await api.new_person("anna@example.com")


@pytest.fixture
async def admin(api: Api, database: asyncpg.Connection) -> Person:
    """Somebody whom the database says to be an admin."""
    admin = await api.new_person("admin@example.com")
    await database.execute("UPDATE users SET role = 'admin' WHERE user_id = $1", admin.user_id)
    return admin


@pytest.fixture
def own_database(servers: Servers, settings: Settings) -> Iterator[Settings]:
    """Settings with a migrated database for one test alone, which may break it."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            url = urlsplit(servers.database_url)._replace(path=f"/{name}").geturl()
            apply_migrations(url)
            yield replace(settings, database_url=url)
        finally:
            connection.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
