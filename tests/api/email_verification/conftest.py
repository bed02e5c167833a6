"""A service that asks a scripted Hunter."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.settings.settings import read_settings
from tests.factories import Api, running
from tests.stand_ins.hunter import TEST_KEY, Hunter

EMAIL = "carl@example.org"


@pytest.fixture
def hunter_environment(environment: dict[str, str], hunter: Hunter) -> dict[str, str]:
    return {**environment, "HUNTER_API_KEY": TEST_KEY, "HUNTER_URL": hunter.url}


@pytest.fixture
async def api(
    hunter_environment: dict[str, str], database: asyncpg.Connection, redis: object
) -> AsyncIterator[Api]:
    async with running(read_settings(hunter_environment)) as api:
        yield api
