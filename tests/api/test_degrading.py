"""What is still answered, and how soon, while PostgreSQL is away, and when it is back."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from service.postgresql.migrations import apply_migrations
from service.settings.settings import Settings
from tests.conftest import Servers
from tests.engines.killable import Way, postgresql, socket_of, way_to
from tests.factories import Answer, Api, running

AT_ONCE = 0.5
REFUSED_WITHIN = 1.0
SLACK = 0.5
"""What a busy machine may add."""
BACK_WITHIN = 2.0


@pytest.fixture
async def way(servers: Servers) -> AsyncIterator[Way]:
    """The way to PostgreSQL, which can break."""
    async with way_to(socket_of(servers.database_url), random.Random(0)) as way:
        yield way


@pytest.fixture
async def api(
    settings: Settings, way: Way, database: asyncpg.Connection, redis: Redis
) -> AsyncIterator[Api]:
    """A service that reaches PostgreSQL by that way, on few connections."""
    url = f"postgresql://postgres@{way.url.partition('://')[2]}/postgres?sslmode=disable"
    few = replace(settings, database_url=url, database_pool_size=3)
    async with running(few) as api:
        yield api


async def timed(call: Coroutine[Any, Any, Answer]) -> tuple[Answer, float]:
    begun = monotonic()
    answer = await call
    return answer, monotonic() - begun


async def refused_soon_and_back_at_once(
    api: Api, trouble: Callable[[], None], mend: Callable[[], None]
) -> None:
    """Hanging is the harder one: all connections are open, and nothing comes through them. Those
    who have one wait for their statement, all others for a connection, and nobody for both."""
    anna = await api.new_person()
    code = await api.new_code(anna)
    look_up = f"/referral-code/{anna.email}"
    assert (await api.get(look_up)).status == 200
    trouble()
    for _ in range(3):
        refused = [
            api.register(referral_code=code),
            api.log_in(anna.email),
            api.put("/referral-code", {"expires_in_days": 3}, by=anna),
            api.get("/referral-code", by=anna),
            api.get("/referral-code/nobody@example.com"),
            api.get("//health/ready"),
        ]
        answered = [api.get(look_up), api.get("//health/live")]
        *no, (found, found_in), (alive, alive_in) = await asyncio.gather(
            *map(timed, [*refused, *answered])
        )
        for answer, seconds in no:
            told = (answer.status, answer.json()["code"], answer.headers["Retry-After"])
            assert told == (503, "database-unavailable", "1")
            assert seconds < REFUSED_WITHIN + SLACK
        assert found.json()["code"] == code
        assert (alive.status, max(found_in, alive_in) < AT_ONCE) == (200, True)
    mend()
    back = monotonic()
    while (await api.register()).status != 201:
        assert monotonic() < back + BACK_WITHIN


@pytest.mark.parametrize("trouble", [Way.cut, Way.hold_up], ids=["cut", "hangs"])
async def test_without_postgresql_cached_look_ups_go_on_and_the_rest_is_refused_soon(
    api: Api, way: Way, trouble: Callable[[Way], None]
) -> None:
    await refused_soon_and_back_at_once(api, lambda: trouble(way), way.mend)


async def test_so_it_is_while_postgresql_is_suspended(
    settings: Settings, redis: Redis, tmp_path: Path
) -> None:
    engine = postgresql(tmp_path, durable=False)
    await engine.start()
    try:
        await asyncio.to_thread(apply_migrations, engine.url)
        async with running(replace(settings, database_url=engine.url)) as api:
            await refused_soon_and_back_at_once(api, engine.suspend, engine.resume)
    finally:
        await engine.stop()
        engine.close()
