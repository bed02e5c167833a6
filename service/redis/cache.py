"""The cache in Redis: what was read from PostgreSQL, kept until it expires or changes.

Redis is never needed: what it cannot answer, the caller reads from PostgreSQL. What it does answer
is never older than this promise, in three parts, allows:

1. Once the answer to a write is sent, no lookup gives the old value. The writer removes it after
   the commit and before the answer. A reader that missed earlier, and still holds what it read,
   cannot put it back: filling takes the lease that the reader got when it missed, and the removal
   removes the lease as well.
2. While Redis is away every answer comes from PostgreSQL. The first failure opens a circuit
   breaker (client.py), and after that no request waits for Redis.
3. When Redis is back, or a process was killed between its commit and the removal, an old value
   lives for 2 s at most: the removal is also a job, written in the transaction of the write
   (use_cases/cache_invalidation.py), and a process trusts Redis again only when no job is left.
   Values that a restarted Redis has loaded from an old file are never seen, because the names of
   keys begin with the server's generation.

Where sentinels may replace the primary (topology.py), the new one starts with an empty cache: what
it holds as a replica has the old one's generation in its names, so a removal that was never
replicated is not missed.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from service.domain.clock import Clock
from service.redis import RedisAway
from service.redis.client import RedisClient
from service.telemetry.metrics import CACHE_READS

FORM: Final = b"2"
"""Changes with the form of the values: during an upgrade old and new processes share the cache,
and ignore each other's values."""
LEASE_FOR: Final = timedelta(seconds=3)
"""Longer than a read from PostgreSQL may take; a dead reader blocks fills for no longer."""
NOTHING_FOR: Final = timedelta(seconds=30)
"""How long "there is nothing" is kept: strangers never stop asking for email addresses."""
REMOVED_AT_ONCE: Final = 1000
"""Keys in one call, which Redis answers within a few ms, so that other calls get their turn."""

_FILL: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
    redis.call('DEL', KEYS[2])
end
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A value worth keeping until `expires_at`."""

    value: bytes
    expires_at: datetime


class Lookup(NamedTuple):  # made in a third of a frozen dataclass's time
    """A read that is on its way to Redis."""

    key: str
    name: str
    """What Redis calls the key. A value read under one generation must not be filled under the
    next, so the name is fixed here."""
    reply: "asyncio.Future[bytes | None] | None"
    """None while Redis is away."""


class Cache:
    """Values by key, read through from PostgreSQL."""

    def __init__(self, redis: RedisClient, clock: Clock, variant: bytes = b"") -> None:
        """`variant` differs where settings lead to different values: like another FORM."""
        self._redis = redis
        self._clock = clock
        self._form = FORM + variant + b" "

    async def read_through(
        self, key: str, load: Callable[[], Awaitable[Entry | None]]
    ) -> bytes | None:
        """Return the value of `key`: from Redis, or from `load`, and then kept in Redis."""
        return await self.finish(self.look_up(key), load)

    def look_up(self, key: str) -> Lookup:
        """Start to read `key`, together with whatever else this turn of the loop asks of Redis."""
        name = self._name(key)
        try:
            return Lookup(key, name, self._redis.get(name))
        except RedisAway:
            return Lookup(key, name, None)

    async def finish(
        self, lookup: Lookup, load: Callable[[], Awaitable[Entry | None]]
    ) -> bytes | None:
        """Return what `read_through` does, of a read that has been started."""
        kind, result, lease = lookup.key.partition(":")[0], "away", None
        try:
            if lookup.reply is not None:
                value = self._valid(await lookup.reply)
                if value is not None:
                    CACHE_READS[kind, "hit"] += 1
                    return value or None
                lease = await self._take_lease(lookup.name)
                result = "miss"
        except RedisAway:
            result = "away"
        CACHE_READS[kind, result] += 1
        entry = await load()
        if lease is not None:
            await self._fill(lookup.name, lease, entry or Entry(b"", self._clock() + NOTHING_FOR))
        return entry.value if entry else None

    async def forget(self, keys: Sequence[str]) -> None:
        """Remove the values of `keys`; raise RedisAway unless Redis confirms it."""
        for start in range(0, len(keys), REMOVED_AT_ONCE):
            names: list[str] = []
            for key in keys[start : start + REMOVED_AT_ONCE]:
                name = self._name(key)
                names += (name, _lease(name), lasting_name(key))
            await self._redis.delete(*names)

    def _valid(self, kept: bytes | None) -> bytes | None:
        """Return the value that Redis keeps, unless it has expired or is another version's."""
        if kept is None or not kept.startswith(self._form):
            return None
        _, expires_at, value = kept.split(b" ", 2)
        # The server's clock ends an entry, but this one's decides: they may differ.
        return value if self._clock().timestamp() * 1000 < int(expires_at) else None

    async def _take_lease(self, name: str) -> str | None:
        """Return the right to fill `name`, or None while another reader has it."""
        token = secrets.token_hex(8)
        milliseconds = int(LEASE_FOR.total_seconds() * 1000)
        taken = await self._redis.call("SET", _lease(name), token, "NX", "PX", milliseconds)
        return token if taken else None

    async def _fill(self, name: str, lease: str, entry: Entry) -> None:
        """Store the value if the lease is still held."""
        expires_at = int(entry.expires_at.timestamp() * 1000)
        value = b"%b%d %b" % (self._form, expires_at, entry.value)
        with suppress(RedisAway):
            await self._redis.call("EVAL", _FILL, 2, name, _lease(name), lease, value, expires_at)

    def _name(self, key: str) -> str:
        return f"{self._redis.generation}:{{{key}}}"


def lasting_name(key: str) -> str:
    """Return the name of a key that outlives restarts of the server, and is forgotten like others.

    Unlike the name of a cached value, it does not start with the server's generation.
    """
    return f"{{{key}}}"


def _lease(name: str) -> str:
    return f"{name}:lease"
