"""The cache in Redis: what was read from PostgreSQL, kept until it expires or changes.

Redis is never needed: what it cannot answer, the caller reads from PostgreSQL. What it answers
is never older than the promise in three parts:

1. Once the answer to a write is sent, no look-up gives the old value. The writer removes it
   after the commit and before the answer. A reader that missed earlier, and still holds what it
   read, cannot put it back: filling needs the lease that the reader took when it missed, and the
   removal removes the lease as well.
2. While Redis is away every answer comes from PostgreSQL. The first failure opens a circuit
   breaker, and after that no request waits for Redis.
3. When Redis is back, or a process was killed between its commit and the removal, an old value
   lives 2 s at most: the removal is also a job, written in the transaction of the write
   (use_cases/forgetting.py), and a process trusts Redis again only when no job is left. Values
   that a restarted Redis has read from an old file are never seen, because the keys begin with
   the id of the server's run.
"""

import asyncio
import functools
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from prometheus_client import Counter

from service.domain.clock import Clock
from service.metrics import CACHE_READS, CIRCUIT_BREAKER_OPEN
from service.redis_connection import RedisAway, RedisConnection, open_connection

LEASE_FOR: Final = timedelta(seconds=3)
"""Longer than a read from PostgreSQL may take; a reader that died holds up no fill for longer."""
NOTHING_FOR: Final = timedelta(seconds=30)
"""How long "there is nothing" is kept: strangers ask for e-mails without end."""

_FILL: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
    redis.call('DEL', KEYS[2])
end
"""


class RedisServer:
    """The connection that all share, with a circuit breaker.

    The breaker begins open: `resume` closes it, and the first failure opens it again. A
    connection that was lost while nobody used it is no failure, and is made again.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: RedisConnection | None = None
        self._connecting: asyncio.Task[RedisConnection] | None = None
        self.away = True
        CIRCUIT_BREAKER_OPEN.set(1)

    @property
    def connection(self) -> RedisConnection | None:
        """The connection if it can be used now, without waiting for anything."""
        connection = self._connection
        return None if self.away or connection is None or connection.is_closed else connection

    async def connect(self) -> RedisConnection:
        """Return the connection; raise RedisAway while the breaker is open."""
        if self.away:
            raise RedisAway
        return self.connection or await self.connect_anyway()

    async def connect_anyway(self) -> RedisConnection:
        """Like `connect`, whatever the breaker says: to find out whether Redis is back."""
        connection = self._connection
        if connection is not None and not connection.is_closed:
            return connection
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._open())
            self._connecting.add_done_callback(
                lambda task: task.exception()
            )  # or asyncio complains
        # Shielded, because others wait for it too.
        return await asyncio.shield(self._connecting)

    def resume(self) -> None:
        """Close the breaker."""
        self.away = False
        CIRCUIT_BREAKER_OPEN.set(0)

    async def close(self) -> None:
        if self._connecting is not None:
            await asyncio.wait([self._connecting])
        if self._connection is not None:
            self._connection.close()

    async def _open(self) -> RedisConnection:
        try:
            self._connection = await open_connection(self._url, self._open_breaker)
        except RedisAway:
            self._open_breaker()
            raise
        finally:
            self._connecting = None
        return self._connection

    def _open_breaker(self) -> None:
        self.away = True
        CIRCUIT_BREAKER_OPEN.set(1)


@dataclass(frozen=True, slots=True)
class Entry:
    """A value worth keeping until `expires_at`."""

    value: bytes
    expires_at: datetime


class Cache:
    """Values by key, read through from PostgreSQL."""

    def __init__(self, server: RedisServer, clock: Clock) -> None:
        self._server = server
        self._clock = clock

    async def read_through(
        self, key: str, load: Callable[[], Awaitable[Entry | None]]
    ) -> bytes | None:
        """Return the value of `key`: from Redis, else from `load`, and then kept in Redis."""
        kind = key.partition(":")[0]
        lease = None
        try:
            redis = self._server.connection or await self._server.connect()
            [kept] = await redis.call(("GET", _value_key(redis, key)))
            if kept is not None:
                expires_at, _, value = kept.partition(b" ")
                # The server's clock ends an entry, this one's decides: they may differ.
                if _milliseconds(self._clock()) < int(expires_at):
                    _counter(kind, "hit").inc()
                    return value or None
            lease = await _take_lease(redis, key)
        except RedisAway:
            _counter(kind, "away").inc()
        else:
            _counter(kind, "miss").inc()
        entry = await load()
        if lease is not None:
            await _fill(redis, key, lease, entry or Entry(b"", self._clock() + NOTHING_FOR))
        return entry.value if entry else None

    async def forget(self, keys: Sequence[str]) -> None:
        """Remove the values of `keys`; raise RedisAway where Redis cannot be told."""
        await _delete(await self._server.connect(), keys)

    async def forget_anyway(self, keys: Sequence[str]) -> None:
        """Like `forget`, whatever the breaker says; without keys, only ask for a sign of life."""
        redis = await self._server.connect_anyway()
        if keys:
            await _delete(redis, keys)
        else:
            await redis.call(("PING",))


async def _take_lease(redis: RedisConnection, key: str) -> str | None:
    """Return the right to fill `key`, or None while another reader has it."""
    token = secrets.token_hex(8)
    milliseconds = int(LEASE_FOR.total_seconds() * 1000)
    [taken] = await redis.call(("SET", _lease_key(redis, key), token, "NX", "PX", milliseconds))
    return token if taken else None


async def _fill(redis: RedisConnection, key: str, lease: str, entry: Entry) -> None:
    """Put the value where the lease still holds; not on a connection that was made since."""
    expires_at = _milliseconds(entry.expires_at)
    keys = _value_key(redis, key), _lease_key(redis, key)
    value = b"%d %b" % (expires_at, entry.value)
    with suppress(RedisAway):
        await redis.call(("EVAL", _FILL, 2, *keys, lease, value, expires_at))


async def _delete(redis: RedisConnection, keys: Sequence[str]) -> None:
    names = [make(redis, key) for key in keys for make in (_value_key, _lease_key)]
    await redis.call(("DEL", *names))


# The braces keep both keys of a value on one node of a cluster.
def _value_key(redis: RedisConnection, key: str) -> str:
    return f"{redis.run_id}:{{{key}}}"


def _lease_key(redis: RedisConnection, key: str) -> str:
    return f"{redis.run_id}:{{{key}}}:lease"


@functools.cache
def _counter(kind: str, result: str) -> Counter:
    return CACHE_READS.labels(kind, result)


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
