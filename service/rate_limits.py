"""Counting requests: at most so many in a window, over all workers.

The windows are counted in Redis. While it is away each worker counts for itself, which allows
as many times more as there are workers, and is still a limit.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.cache import RedisAway, RedisServer
from service.domain.clock import Clock
from service.settings import RateLimit

MOST_LOCAL_WINDOWS: Final = 100_000

# Counts in all windows at once, so that an attempt is counted before anything is done for it:
# of 60 parallel attempts 60 would pass a check that counts afterwards.
_COUNT: Final = """
local answers = {}
for index, key in ipairs(KEYS) do
    local count = redis.call('INCR', key)
    if count == 1 then redis.call('PEXPIRE', key, ARGV[index]) end
    answers[#answers + 1] = count
    answers[#answers + 1] = redis.call('PTTL', key)
end
return answers
"""


@dataclass(frozen=True, slots=True)
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


class RateLimiter:
    """Counts requests by name and subject."""

    def __init__(self, server: RedisServer, clock: Clock) -> None:
        self._server = server
        self._clock = clock
        self._local: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def count(self, limit: RateLimit, subjects: Sequence[tuple[str, str]]) -> list[Window]:
        """Count one request in the window of each (name, subject); return the windows."""
        keys = [f"limit:{name}:{subject}" for name, subject in subjects]
        milliseconds = limit.seconds * 1000
        try:
            counted = await self._server.call(
                lambda redis: redis.eval(_COUNT, len(keys), *keys, *[milliseconds] * len(keys))
            )
            counts = list(zip(counted[::2], counted[1::2], strict=True))
        except RedisAway:
            counts = [self._count_here(key, milliseconds) for key in keys]
        return [
            Window(name, limit, count, -(-max(1, left) // 1000))
            for (name, _), (count, left) in zip(subjects, counts, strict=True)
        ]

    def _count_here(self, key: str, milliseconds: int) -> tuple[int, int]:
        now = self._clock().timestamp() * 1000
        count, ends = self._local.pop(key, (0, 0.0))
        if ends <= now:
            count, ends = 0, now + milliseconds
        self._local[key] = (count + 1, ends)
        if len(self._local) > MOST_LOCAL_WINDOWS:
            self._local.popitem(last=False)
        return count + 1, int(ends - now)
