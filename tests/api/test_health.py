"""What operators' tools ask: is it alive, can it answer."""

from dataclasses import replace

import asyncpg
from redis.asyncio import Redis

from service.settings import Settings
from tests.api import redis_trouble
from tests.factories import Api, running

NO_POSTGRESQL = "postgresql://nobody@127.0.0.1:1/nothing"


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
