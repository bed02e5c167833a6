"""Password hashing: argon2id on threads of its own, with a bounded queue.

A hash takes about 20 ms of a core and 19 MiB: on the event loop, or on more threads than cores,
it would hold up every other request.

Verifying takes equally long for every account and for none, even if an operator has changed the
cost since some hashes were made: as long as the most expensive hash seen by the process. The time
of each cost is measured, not calculated, because it depends on caches and the memory allocator.
"""

import asyncio
import os
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from secrets import token_urlsafe
from statistics import median
from time import monotonic, thread_time
from typing import Final, TypeVar

from argon2.low_level import Type, hash_secret_raw
from passlib.context import CryptContext

from service.domain.errors import HashingQueueFull
from service.domain.passwords import LONGEST_PASSWORD, normalise_password

T = TypeVar("T")
_FILLER_KIB: Final = 256
_LOWEST_PRIORITY: Final = 19
BURST_SECONDS: Final = 0.1
"""Bursts may wait; once hashes have waited this long, there are more than can be done."""
LONGEST_WAIT_SECONDS: Final = 0.4
"""How long a hash may wait then: longer, and its client has left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argon2:
    """The cost of one password hash (RFC 9106)."""

    memory_kib: int
    passes: int
    lanes: int


class PasswordHasher:
    """Hashes and verifies; raises HashingQueueFull if `queue` hashes already wait or run."""

    def __init__(self, cost: Argon2, threads: int, queue: int) -> None:
        self._context = CryptContext(
            schemes=["argon2"],
            argon2__type="ID",
            argon2__memory_cost=cost.memory_kib,
            argon2__time_cost=cost.passes,
            argon2__parallelism=cost.lanes,
        )
        self._seconds = defaultdict[str, deque[float]](lambda: deque(maxlen=15))
        """How long the latest verifications took, by cost."""
        self._seconds_of_filler = 0.0001
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, "hashing", initializer=_yield_to_others)
        self._queue = queue
        self.pending = 0
        """The number of hashes that wait or run."""
        self._waited = self._took = 0.0
        """Seconds: how long the latest to start waited, and the CPU time of the latest to end."""

    def warm_up(self) -> None:
        """Start making nobody's hash, or the first unknown email address would take longer."""
        self._executor.submit(self._verify, "", None)

    async def hash(self, password: str) -> str:
        return await self._run(lambda: self._context.hash(normalise_password(password)))

    async def verify(self, password: str, password_hash: str | None) -> tuple[bool, bool]:
        """Return whether the password is right, and whether its hash should be replaced.

        Without a hash it takes the same time, for unknown email addresses.
        """
        return await self._run(lambda: self._verify(password, password_hash))

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _verify(self, password: str, password_hash: str | None) -> tuple[bool, bool]:
        normalised = normalise_password(password)
        verified = self._is_right(normalised, password_hash)
        # The first releases hashed passwords as they were sent. Tried even if the first try was
        # right, which the time taken would otherwise reveal.
        sent = normalised != password and self._is_right(password, password_hash)
        outdated = sent or (verified and self._context.needs_update(password_hash))
        return verified or sent, outdated

    def _is_right(self, password: str, password_hash: str | None) -> bool:
        """Return whether this is the password, after the time of the most expensive hash."""
        # No account has a longer password, and passlib raises on one of 4097 bytes.
        if password_hash is None or len(password) > LONGEST_PASSWORD:
            password, password_hash = "", self._nobodys_hash
        cost = password_hash.split("$")[3]
        clock = _clock_of(cost)
        started_at = clock()
        right: bool = self._context.verify(password, password_hash)
        self._seconds[cost].append(clock() - started_at)
        usual = {known: median(seconds) for known, seconds in self._seconds.copy().items()}
        slowest = max(usual, key=lambda known: usual[known])
        self._spend(usual[slowest] - usual[cost], _clock_of(slowest))
        return right

    @cached_property
    def _nobodys_hash(self) -> str:
        password_hash: str = self._context.hash(token_urlsafe())
        return password_hash

    def _spend(self, seconds: float, clock: Callable[[], float]) -> None:
        """Burn so many seconds with hashes that nobody needs."""
        end = clock() + seconds
        while (left := end - (started_at := clock())) > 0:
            passes = max(1, int(left / self._seconds_of_filler))
            hash_secret_raw(b"", bytes(16), passes, _FILLER_KIB, 1, 16, Type.ID)
            self._seconds_of_filler = max(1e-5, (clock() - started_at) / passes)

    async def _run(self, work: Callable[[], T]) -> T:
        if not self.pending:
            self._waited = 0.0  # a new burst
        wait = self.pending / self._threads * self._took
        too_many = self._waited > BURST_SECONDS and wait > LONGEST_WAIT_SECONDS
        if too_many or self.pending >= self._queue:
            raise HashingQueueFull
        self.pending += 1
        arrived_at = monotonic()

        def start() -> T:
            self._waited = monotonic() - arrived_at
            # CPU time: at the lowest priority, many refusals slow a hash down, and its duration
            # would cause more of them, for ever.
            before = thread_time()
            result = work()
            self._took = thread_time() - before
            return result

        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, start)
        finally:
            self.pending -= 1


def _clock_of(cost: str) -> Callable[[], float]:
    """Return the clock that measures a hash: several lanes are computed by several threads."""
    return thread_time if cost.endswith(",p=1") else monotonic


def _yield_to_others() -> None:
    """Let hashing run only when nothing else wants the core."""
    if sys.platform == "linux":  # elsewhere threads have no priorities of their own
        with suppress(OSError):  # not permitted: run at equal priority
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
