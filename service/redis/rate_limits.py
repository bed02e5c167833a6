"""Counting requests: at most so many in a window, over all workers.

The windows are counted in Redis under keyed hashes, so that it holds no addresses and no names.
While it is away each worker counts for itself, which allows as many times more as there are
workers, and is still a limit.
"""

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

from service.domain.clock import Clock
from service.domain.keyed_hashes import keyed_hash
from service.domain.rate_limits import RateLimit
from service.redis.cache import RedisServer
from service.redis.connection import RedisAway, pack

MOST_LOCAL_WINDOWS: Final = 100_000

# Not if the count has expired or was removed meanwhile: a negative one would never expire.
TAKE_BACK: Final = """
if tonumber(redis.call('GET', KEYS[1]) or 0) > 0 then redis.call('DECR', KEYS[1]) end
"""


class LocalCounts:
    """Counts in the memory of this process; the least recently changed make room for others."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def find(self, key: str) -> tuple[int, int]:
        """Return a count and the milliseconds until it expires, or 0 and 0."""
        count, ends = self._counts.get(key, (0, 0.0))
        left = int(ends - self._now())
        return (count, left) if left > 0 else (0, 0)

    def keep(self, key: str, count: int, milliseconds: int) -> None:
        """Keep a count for so many milliseconds."""
        self._counts.pop(key, None)
        self._counts[key] = (count, self._now() + milliseconds)
        if len(self._counts) > MOST_LOCAL_WINDOWS:
            self._counts.popitem(last=False)

    def take_back(self, key: str) -> None:
        count, left = self.find(key)
        if count:
            self.keep(key, count - 1, left)

    def remove(self, key: str) -> None:
        self._counts.pop(key, None)

    def _now(self) -> float:
        return self._clock().timestamp() * 1000


class Window:
    """A request's place in the window of a limit, for one subject.

    The request is counted as this is made, before anything is done for it: of 60 parallel attempts
    60 would pass a check that counts afterwards. What else Redis is asked until it is settled
    costs no time.
    """

    __slots__ = (
        "_ends_at",
        "_key",
        "_local",
        "_redis",
        "_replies",
        "count",
        "limit",
        "name",
        "reset",
    )

    def __init__(self, limiter: "RateLimiter", name: str, limit: RateLimit, subject: str) -> None:
        self.name = name
        self.limit = limit
        self.count = 0
        """How many requests there were, this one included. Known once the window is settled."""
        self.reset = 0
        """Seconds until the window ends, rounded up. Known once the window is settled."""
        self._ends_at = 0.0
        self._local = limiter.local
        self._key, commands = _count_commands(limiter.hash_key, name, subject)
        self._redis = redis = limiter.server.connection_of(self._key)
        self._replies = None if redis is None else redis.call_packed(commands, 2)

    async def settle(self) -> None:
        """Learn how full the window is. Once only."""
        milliseconds = self.limit.seconds * 1000
        counted: tuple[int, int] | None = None
        if self._redis is not None and self._replies is not None:
            with suppress(RedisAway):
                count, left = await self._replies
                if left < 0:
                    left = milliseconds
                    await self._redis.call(("PEXPIRE", self._key, left, "NX"))
                counted = count, left
        if counted is None:
            self._redis = None
            counted = self._count_here(milliseconds)
        self.count, left = counted
        self.reset = -(-left // 1000) or 1
        self._ends_at = monotonic() + left / 1000

    def _count_here(self, milliseconds: int) -> tuple[int, int]:
        count, left = self._local.find(self._key)
        self._local.keep(self._key, count + 1, left or milliseconds)
        return count + 1, left or milliseconds

    async def take_back(self) -> None:
        """Uncount the request, unless its window has ended."""
        if monotonic() >= self._ends_at:
            return
        self.count -= 1
        if self._redis is None:
            self._local.take_back(self._key)
            return
        with suppress(RedisAway):
            await self._redis.call(("EVAL", TAKE_BACK, 1, self._key))

    @property
    def remaining(self) -> int:
        return max(0, self.limit.requests - self.count)

    @property
    def exceeded(self) -> bool:
        return self.count > self.limit.requests


class RateLimiter:
    """Counts requests by name and subject."""

    def __init__(self, server: RedisServer, clock: Clock, hash_key: bytes) -> None:
        self.server = server
        self.hash_key = hash_key
        self.local = LocalCounts(clock)

    async def count(self, limit: RateLimit, subjects: Sequence[tuple[str, str]]) -> list[Window]:
        """Count one request in the window of each (name, subject); return the windows."""
        with suppress(RedisAway):
            key, _ = _count_commands(self.hash_key, *subjects[0])
            await self.server.connect(key)
        windows = [Window(self, name, limit, subject) for name, subject in subjects]
        await asyncio.gather(*[window.settle() for window in windows])
        return windows


@functools.lru_cache(4096)
def _count_commands(hash_key: bytes, name: str, subject: str) -> tuple[str, bytes]:
    """Return the key of a window, and what counts in it."""
    key = f"limit:{name}:{keyed_hash(hash_key, f'limit {name}', subject)}"
    return key, pack(("INCR", key), ("PTTL", key))
