"""Several servers of Redis for the tests, on loopback."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Final

from service.api.http.app_keys import SERVICES
from service.domain.clock import utc_now
from service.redis import topology
from service.redis.cache import Cache, Entry
from service.redis.client import RedisClient
from service.settings.settings import Settings
from tests.engines.machines import Machine
from tests.engines.valkeys import Valkey
from tests.factories import Api, running

LONG: Final = 10.0
"""Seconds; what takes longer is hanging."""
LOOPBACK: Final = Machine("127.0.0.1")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server((LOOPBACK.address, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def started(servers: Sequence[Valkey]) -> Iterator[None]:
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_until(server.answers)
        yield
    finally:
        for server in servers:
            server.kill()


async def trusted(api: Api) -> None:
    """Wait until the cache is used."""
    async with asyncio.timeout(LONG):
        while api.app[SERVICES].redis.away:
            await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Api]:
    """Run the service; yield its client when the cache is used."""
    async with running(settings) as api:
        await trusted(api)
        yield api


@asynccontextmanager
async def open_cache(url: str) -> AsyncIterator[tuple[Cache, RedisClient]]:
    """Yield the cache alone, without a service around it."""
    client = RedisClient(url)
    await client.probe()
    await asyncio.sleep(topology.SETTLING_SECONDS)
    client.resume()
    try:
        yield Cache(client, utc_now), client
    finally:
        await client.close()


async def nothing_to_load() -> Entry | None:
    raise AssertionError("the value should have come from Redis")


def loading(value: bytes) -> Callable[[], Awaitable[Entry | None]]:
    async def load() -> Entry | None:
        return Entry(value, utc_now() + timedelta(hours=1))

    return load


def names(node: Valkey, key: str) -> list[bytes]:
    """Return what a server calls the values of a cache key, of whatever generation."""
    found: list[bytes] = node.tell("KEYS", f"*{{{key}}}")
    return found
