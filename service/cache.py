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
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from service.domain.clock import Clock
from service.metrics import CACHE_READS, CIRCUIT_BREAKER_OPEN

TIMEOUT_SECONDS: Final = 0.25
CALLS_AT_ONCE: Final = 32
"""More would not be answered sooner, and each takes a connection; under a flood those that wait
here do not run into TIMEOUT_SECONDS, and do not open the breaker."""
LEASE_FOR: Final = timedelta(seconds=3)
"""Longer than a read from PostgreSQL may take; a reader that died holds up no fill for longer."""
NOTHING_FOR: Final = timedelta(seconds=30)
"""How long "there is nothing" is kept: strangers ask for e-mails without end."""
T = TypeVar("T")

_FILL: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
    redis.call('DEL', KEYS[2])
end
"""


class RedisAway(Exception):
    """Redis did not answer in time, or did not lately."""


class RedisServer:
    """A connection pool with a circuit breaker.

    The breaker begins open: `resume` closes it, and the first failure opens it again.
    """

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            # One more try, for a connection that Redis has closed while it was idle.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            max_connections=1000,
            redis_connect_func=self._on_connect,
        )
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self.run_id = ""
        """Changes when the server restarts, or another takes its place."""
        self.away = True
        CIRCUIT_BREAKER_OPEN.set(1)

    async def call(self, work: Callable[[Redis], Awaitable[T]]) -> T:
        """Return what `work` gets from Redis; raise RedisAway while the breaker is open."""
        async with self._slots:
            if self.away:
                raise RedisAway
            return await self.call_anyway(work)

    async def call_anyway(self, work: Callable[[Redis], Awaitable[T]]) -> T:
        """Like `call`, whatever the breaker says: to find out whether Redis is back."""
        try:
            if not self.run_id:
                await self._redis.ping()  # connecting tells what the keys begin with
            run_id = self.run_id
            result = await work(self._redis)
        except (RedisError, OSError) as error:
            self._open_breaker()
            raise RedisAway from error
        if self.run_id != run_id:
            # `work` was repeated on a connection to another server, with keys of the old one.
            self._open_breaker()
            raise RedisAway("Redis was restarted.")
        return result

    def resume(self) -> None:
        """Close the breaker."""
        self.away = False
        CIRCUIT_BREAKER_OPEN.set(0)

    async def close(self) -> None:
        await self._redis.aclose()

    def _open_breaker(self) -> None:
        self.away = True
        CIRCUIT_BREAKER_OPEN.set(1)

    async def _on_connect(self, connection: AbstractConnection) -> None:
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        info: Any = await connection.read_response()
        lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        self.run_id = lines["run_id"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A value worth keeping until `expires_at`."""

    value: str
    expires_at: datetime


class Cache:
    """Values by key, read through from PostgreSQL."""

    def __init__(self, server: RedisServer, clock: Clock) -> None:
        self._server = server
        self._clock = clock

    async def read_through(
        self, key: str, load: Callable[[], Awaitable[Entry | None]]
    ) -> str | None:
        """Return the value of `key`: from Redis, else from `load`, and then kept in Redis."""
        kind = key.partition(":")[0]
        try:
            kept: Any = await self._server.call(lambda redis: redis.get(self._value_key(key)))
            if kept is not None:
                expires_at, _, value = kept.partition(" ")
                # The server's clock ends an entry, this one's decides: they may differ.
                if _milliseconds(self._clock()) < int(expires_at):
                    CACHE_READS.labels(kind, "hit").inc()
                    return value or None
            lease = await self._lease(key)
        except RedisAway:
            CACHE_READS.labels(kind, "away").inc()
            lease = None
        else:
            CACHE_READS.labels(kind, "miss").inc()
        entry = await load()
        if lease is not None:
            await self._fill(key, lease, entry or Entry("", self._clock() + NOTHING_FOR))
        return entry.value if entry else None

    async def forget(self, keys: Sequence[str]) -> None:
        """Remove the values of `keys`; raise RedisAway where Redis cannot be told."""
        await self._server.call(lambda redis: self._delete(redis, keys))

    async def forget_anyway(self, keys: Sequence[str]) -> None:
        """Like `forget`, whatever the breaker says; without keys, only ask for a sign of life."""
        if keys:
            await self._server.call_anyway(lambda redis: self._delete(redis, keys))
        else:
            await self._server.call_anyway(lambda redis: redis.ping())

    async def _lease(self, key: str) -> str | None:
        """Return the right to fill `key`, or None while another reader has it."""
        token = secrets.token_hex(8)
        taken = await self._server.call(
            lambda redis: redis.set(self._lease_key(key), token, nx=True, px=LEASE_FOR)
        )
        return token if taken else None

    async def _fill(self, key: str, lease: str, entry: Entry) -> None:
        expires_at = _milliseconds(entry.expires_at)
        keys_and_arguments = (
            self._value_key(key),
            self._lease_key(key),
            lease,
            f"{expires_at} {entry.value}",
            expires_at,
        )
        with suppress(RedisAway):
            await self._server.call(lambda redis: redis.eval(_FILL, 2, *keys_and_arguments))

    async def _delete(self, redis: Redis, keys: Sequence[str]) -> None:
        await redis.delete(*map(self._value_key, keys), *map(self._lease_key, keys))

    # The braces keep both keys of a value on one node of a cluster.
    def _value_key(self, key: str) -> str:
        return f"{self._server.run_id}:{{{key}}}"

    def _lease_key(self, key: str) -> str:
        return f"{self._server.run_id}:{{{key}}}:lease"


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
