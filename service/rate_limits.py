"""Counting requests: at most so many in a window, over all workers.

The windows are counted in Redis. While it is away each worker counts for itself, which allows
as many times more as there are workers, and is still a limit.
"""

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from service.cache import RedisServer
from service.domain.clock import Clock
from service.redis_connection import RedisAway, pack
from service.settings import RateLimit

MOST_LOCAL_WINDOWS: Final = 100_000
KNOWN_SECONDS: Final = 30 * 24 * 3600
"""How long an address counts as one that an account is signed in to from."""
Subjects = tuple[tuple[str, str], ...]
"""What is counted: names of limits, and whom each is about."""


@dataclass(slots=True)
class Window:
    """How full a window is. `reset` is the seconds until it ends, rounded up."""

    name: str
    limit: RateLimit
    count: int
    reset: int

    @property
    def remaining(self) -> int:
        return max(0, self.limit.requests - self.count)

    @property
    def exceeded(self) -> bool:
        return self.count > self.limit.requests


class Counting:
    """A request that is being counted: what else Redis is asked meanwhile costs no time."""

    __slots__ = ("_limit", "_limiter", "_redis", "_replies", "_subjects")

    def __init__(self, limiter: "RateLimiter", limit: RateLimit, subjects: Subjects) -> None:
        self._limiter = limiter
        self._limit = limit
        self._subjects = subjects
        self._redis = limiter.server.connection
        self._replies: asyncio.Future[list[Any]] | None = None
        if self._redis is not None:
            self._replies = self._redis.call_packed(_count_commands(subjects), 2 * len(subjects))

    async def windows(self) -> list[Window]:
        """Return the windows that the request was counted in, itself included. Once only."""
        if self._redis is None or self._replies is None:
            return self._limiter.count_here(self._limit, self._subjects)
        windows = []
        try:
            replies = await self._replies
            for index, (name, subject) in enumerate(self._subjects):
                count, left = replies[2 * index : 2 * index + 2]
                if left < 0:
                    left = self._limit.seconds * 1000
                    await self._redis.call(("PEXPIRE", _key(name, subject), left, "NX"))
                windows.append(Window(name, self._limit, count, _seconds(left)))
        except RedisAway:
            return self._limiter.count_here(self._limit, self._subjects)
        return windows


class RateLimiter:
    """Counts requests by name and subject."""

    def __init__(self, server: RedisServer, clock: Clock) -> None:
        self.server = server
        self._clock = clock
        self._local: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def count(self, limit: RateLimit, subjects: Sequence[tuple[str, str]]) -> list[Window]:
        """Count one request in the window of each (name, subject); return the windows."""
        with suppress(RedisAway):
            await self.server.connect()
        return await self.start(limit, tuple(subjects)).windows()

    def start(self, limit: RateLimit, subjects: Subjects) -> Counting:
        """Begin to count one request, before anything is done for it.

        Of 60 parallel attempts 60 would pass a check that counts afterwards.
        """
        return Counting(self, limit, subjects)

    async def knows(self, account: str, address: str) -> bool:
        """Whether somebody has signed in to the account from there; no while Redis is away."""
        try:
            redis = await self.server.connect()
            [found] = await redis.call(("EXISTS", _place(account, address)))
        except RedisAway:
            return False
        return bool(found)

    async def remember(self, account: str, address: str) -> None:
        """Note that somebody has signed in to the account from there."""
        with suppress(RedisAway):
            redis = await self.server.connect()
            await redis.call(("SET", _place(account, address), 1, "EX", KNOWN_SECONDS))

    def count_here(self, limit: RateLimit, subjects: Subjects) -> list[Window]:
        """Count one request in the memory of the process."""
        windows = []
        for name, subject in subjects:
            count, left = self._count_here(_key(name, subject), limit.seconds * 1000)
            windows.append(Window(name, limit, count, _seconds(left)))
        return windows

    def _count_here(self, key: str, milliseconds: int) -> tuple[int, int]:
        now = self._clock().timestamp() * 1000
        count, ends = self._local.pop(key, (0, 0.0))
        if ends <= now:
            count, ends = 0, now + milliseconds
        self._local[key] = (count + 1, ends)
        if len(self._local) > MOST_LOCAL_WINDOWS:
            self._local.popitem(last=False)
        return count + 1, int(ends - now)


@functools.lru_cache(4096)
def _count_commands(subjects: Subjects) -> bytes:
    keys = [_key(name, subject) for name, subject in subjects]
    return pack(*(command for key in keys for command in (("INCR", key), ("PTTL", key))))


def _key(name: str, subject: str) -> str:
    return f"limit:{name}:{subject}"


def _place(account: str, address: str) -> str:
    return f"signed-in:{account}:{address}"


def _seconds(milliseconds: int) -> int:
    return -(-max(1, milliseconds) // 1000)
