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
from service.redis_connection import RedisAway, RedisConnection, pack
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

    __slots__ = ("_calls", "_limit", "_limiter", "_subjects")

    def __init__(self, limiter: "RateLimiter", limit: RateLimit, subjects: Subjects) -> None:
        self._limiter = limiter
        self._limit = limit
        self._subjects = subjects
        self._calls: list[tuple[str, str, RedisConnection, asyncio.Future[list[Any]]]] = []
        for name, subject in subjects:
            key, commands = _count_commands(name, subject)
            redis = limiter.server.connection_of(key)
            if redis is not None:
                self._calls.append((name, key, redis, redis.call_packed(commands, 2)))

    async def windows(self) -> list[Window]:
        """Return the windows that the request was counted in, itself included. Once only."""
        windows = []
        away = len(self._calls) < len(self._subjects)
        for name, key, redis, replies in self._calls:
            try:
                count, left = await replies
                if left < 0:
                    left = self._limit.seconds * 1000
                    await redis.call(("PEXPIRE", key, left, "NX"))
            except RedisAway:
                away = True  # and the others are awaited all the same, or asyncio complains
            else:
                windows.append(Window(name, self._limit, count, _seconds(left)))
        if away:
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
            await self.server.connect(_key(*subjects[0]))
        return await self.start(limit, tuple(subjects)).windows()

    def start(self, limit: RateLimit, subjects: Subjects) -> Counting:
        """Begin to count one request, before anything is done for it.

        Of 60 parallel attempts 60 would pass a check that counts afterwards.
        """
        return Counting(self, limit, subjects)

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
def _count_commands(name: str, subject: str) -> tuple[str, bytes]:
    """Return the key of a window, and what counts in it."""
    key = _key(name, subject)
    return key, pack(("INCR", key), ("PTTL", key))


def _key(name: str, subject: str) -> str:
    return f"limit:{name}:{subject}"


def _place(account: str, address: str) -> str:
    return f"signed-in:{account}:{address}"


def _seconds(milliseconds: int) -> int:
    return -(-max(1, milliseconds) // 1000)
