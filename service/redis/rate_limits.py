"""Counting requests: at most so many in a window, over all workers.

The windows are counted in Redis under keyed hashes: it holds no addresses and no names. While it
is away each worker counts on its own, which multiplies the limit by the number of workers, and is
still a limit.
"""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final

from service.domain.clock import Clock
from service.domain.keyed_hashes import keyed_hash
from service.domain.rate_limits import RateLimit
from service.redis import RedisAway
from service.redis.client import RedisClient

MOST_LOCAL_WINDOWS: Final = 100_000

# Not if a count has expired or was removed meanwhile: a negative one would never expire.
TAKE_BACK: Final = """
for _, key in ipairs(KEYS) do
    if tonumber(redis.call('GET', key) or 0) > 0 then redis.call('DECR', key) end
end
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
        """Keep a count for this many milliseconds."""
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


@dataclass(slots=True)
class Window:
    """A request's place in the window of a limit, for one subject."""

    name: str
    limit: RateLimit
    count: int
    """How many requests there were, this one included."""
    reset: int
    """Seconds until the window ends, rounded up."""
    key: str = ""
    ends_at: float = 0.0
    """By the monotonic clock."""
    is_local: bool = False
    """Whether this process counted it on its own."""

    @property
    def remaining(self) -> int:
        return max(0, self.limit.requests - self.count)

    @property
    def exceeded(self) -> bool:
        return self.count > self.limit.requests


class RateLimiter:
    """Counts requests by name and subject."""

    def __init__(self, redis: RedisClient, clock: Clock, hash_key: bytes) -> None:
        self._redis = redis
        self._hash_key = hash_key
        self.local = LocalCounts(clock)

    async def count(self, limit: RateLimit, subjects: Sequence[tuple[str, str]]) -> list[Window]:
        """Count one request in the window of each (name, subject); return the windows.

        To be called before anything is done for the request: of 60 parallel attempts 60 would
        pass a check that counts afterwards.
        """
        milliseconds = limit.seconds * 1000
        asked, windows = [], []
        try:
            for name, subject in subjects:
                key = _key(self._hash_key, name, subject)
                asked.append((name, key, self._redis.count(key, milliseconds)))
            for name, key, reply in asked:
                count, left = await reply
                windows.append(_window(name, limit, key, count, left))
        except RedisAway:
            return [self._count_here(limit, name, subject) for name, subject in subjects]
        return windows

    async def take_back(self, windows: Sequence[Window]) -> None:
        """Uncount a request, except in windows that have ended."""
        running = [window for window in windows if monotonic() < window.ends_at]
        for window in running:
            window.count -= 1
            if window.is_local:
                self.local.take_back(window.key)
        if keys := [window.key for window in running if not window.is_local]:
            with suppress(RedisAway):
                await self._redis.call("EVAL", TAKE_BACK, len(keys), *keys)

    def _count_here(self, limit: RateLimit, name: str, subject: str) -> Window:
        key = _key(self._hash_key, name, subject)
        count, left = self.local.find(key)
        left = left or limit.seconds * 1000
        self.local.keep(key, count + 1, left)
        return _window(name, limit, key, count + 1, left, is_local=True)


def _window(
    name: str, limit: RateLimit, key: str, count: int, left: int, *, is_local: bool = False
) -> Window:
    """Return the window with this key, which has so many milliseconds left."""
    ends_at = monotonic() + left / 1000
    return Window(name, limit, count, -(-left // 1000) or 1, key, ends_at, is_local)


@functools.lru_cache(4096)
def _key(hash_key: bytes, name: str, subject: str) -> str:
    return f"limit:{name}:{keyed_hash(hash_key, f'limit {name}', subject)}"
