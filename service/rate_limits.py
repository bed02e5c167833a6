"""Counting requests: at most so many in a window, over all workers.

The windows are counted in Redis. While it is away each worker counts for itself, which allows
as many times more as there are workers, and is still a limit.
"""

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from service.cache import RedisServer
from service.domain.clock import Clock
from service.redis_connection import RedisAway, pack
from service.settings import RateLimit

MOST_LOCAL_WINDOWS: Final = 100_000
KNOWN_SECONDS: Final = 30 * 24 * 3600
"""How long an address counts as one that an account is signed in to from."""


class Window:
    """A request's place in the window of a limit, for one subject.

    The request is counted as this is made, before anything is done for it: of 60 parallel attempts
    60 would pass a check that counts afterwards. What else Redis is asked until it is settled
    costs no time.
    """

    __slots__ = ("_key", "_limiter", "_redis", "_replies", "count", "limit", "name", "reset")

    def __init__(self, limiter: "RateLimiter", name: str, limit: RateLimit, subject: str) -> None:
        self.name = name
        self.limit = limit
        self.count = 0
        """How many requests there were, this one included. Known once the window is settled."""
        self.reset = 0
        """Seconds until the window ends, rounded up. Known once the window is settled."""
        self._limiter = limiter
        self._key, commands = _count_commands(name, subject)
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
        self.count, left = counted or self._limiter.count_here(self._key, milliseconds)
        self.reset = -(-left // 1000) or 1

    @property
    def remaining(self) -> int:
        return max(0, self.limit.requests - self.count)

    @property
    def exceeded(self) -> bool:
        return self.count > self.limit.requests


class RateLimiter:
    """Counts requests by name and subject."""

    def __init__(self, server: RedisServer, clock: Clock) -> None:
        self.server = server
        self._clock = clock
        self._local: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def count(self, limit: RateLimit, subjects: Sequence[tuple[str, str]]) -> list[Window]:
        """Count one request in the window of each (name, subject); return the windows."""
        with suppress(RedisAway):
            await self.server.connect(_key(*subjects[0]))
        windows = [Window(self, name, limit, subject) for name, subject in subjects]
        await asyncio.gather(*[window.settle() for window in windows])
        return windows

    async def knows(self, account: str, address: str) -> bool:
        """Whether somebody has signed in to the account from there; no while Redis is away."""
        place = _place(account, address)
        try:
            redis = await self.server.connect(place)
            [found] = await redis.call(("EXISTS", place))
        except RedisAway:
            return False
        return bool(found)

    async def remember(self, account: str, address: str) -> None:
        """Note that somebody has signed in to the account from there."""
        place = _place(account, address)
        with suppress(RedisAway):
            redis = await self.server.connect(place)
            await redis.call(("SET", place, 1, "EX", KNOWN_SECONDS))

    def count_here(self, key: str, milliseconds: int) -> tuple[int, int]:
        """Count one request in the memory of the process; return how many, and what is left."""
        now = self._clock().timestamp() * 1000
        count, ends = self._local.pop(key, (0, 0.0))
        if ends <= now:
            count, ends = 0, now + milliseconds
        self._local[key] = (count + 1, ends)
        if len(self._local) > MOST_LOCAL_WINDOWS:
            self._local.popitem(last=False)
        return count + 1, int(ends - now)


@functools.lru_cache(4096)
def _count_commands(name: str, subject: str) -> tuple[str, bytes]:
    """Return the key of a window, and what counts in it."""
    key = _key(name, subject)
    return key, pack(("INCR", key), ("PTTL", key))


def _key(name: str, subject: str) -> str:
    return f"limit:{name}:{subject}"


def _place(account: str, address: str) -> str:
    return f"signed-in:{account}:{address}"
