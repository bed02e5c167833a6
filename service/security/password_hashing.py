"""Hashing passwords: argon2id on threads of their own, and not more at once than can be done.

One hash takes about 20 ms of a core and 19 MiB. On the event loop, or on more threads than
cores, every other request would wait for it.

Verifying takes the same time for every account and for none, although hashes that were made before
an operator changed the cost take another time: it lasts as long as for the dearest hash that the
process has met. How long each cost takes is measured, not calculated: it depends on caches and on
the memory allocator, and twice the memory can take four times as long.
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
"""What comes at once may wait, but when hashes have waited so long, it is more than can be done."""
LONGEST_WAIT_SECONDS: Final = 0.4
"""Then nobody has to wait for longer: it would be hashed for clients that have left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argon2:
    """The cost of one password hash (RFC 9106)."""

    memory_kib: int
    passes: int
    lanes: int


class PasswordHasher:
    """Hashes and verifies; raises HashingQueueFull where `queue` hashes wait or run already."""

    def __init__(self, cost: Argon2, threads: int, queue: int) -> None:
        self._context = CryptContext(
            schemes=["argon2"],
            argon2__type="ID",
            argon2__memory_cost=cost.memory_kib,
            argon2__time_cost=cost.passes,
            argon2__parallelism=cost.lanes,
        )
        self._seconds = defaultdict[str, deque[float]](lambda: deque(maxlen=15))
        """What the last verifications took, by cost."""
        self._seconds_of_filler = 0.0001
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, "hashing", initializer=_yield_to_others)
        self._queue = queue
        self.pending = 0
        """How many hashes wait or run."""
        self._waited = self._took = 0.0
        """Seconds, of the hash that began, and of the core, of the one that ended last."""

    def warm_up(self) -> None:
        """Begin to make nobody's hash, so that the first unknown email address takes no longer.

        Whose hash is wanted meanwhile waits for it.
        """
        self._executor.submit(self._verify, "", None)

    async def hash(self, password: str) -> str:
        return await self._run(lambda: self._context.hash(normalise_password(password)))

    async def verify(self, password: str, password_hash: str | None) -> tuple[bool, bool]:
        """Return whether the password is right, and whether its hash should be made anew.

        Without a hash, one is computed for nothing: an unknown email address takes the same time.
        """
        return await self._run(lambda: self._verify(password, password_hash))

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _verify(self, password: str, password_hash: str | None) -> tuple[bool, bool]:
        normalised = normalise_password(password)
        verified = self._is_right(normalised, password_hash)
        # The hashes of the first releases are of passwords as they were sent. Tried also where it
        # is needless: otherwise the time would tell whether the first try was right.
        sent = normalised != password and self._is_right(password, password_hash)
        outdated = sent or (verified and self._context.needs_update(password_hash))
        return verified or sent, outdated

    def _is_right(self, password: str, password_hash: str | None) -> bool:
        """Return whether this is the password, after the time that the dearest hash takes."""
        # No account has a longer password, and passlib raises on one of 4097 bytes.
        if password_hash is None or len(password) > LONGEST_PASSWORD:
            password, password_hash = "", self._nobodys_hash
        cost = password_hash.split("$")[3]
        clock = _clock_of(cost)
        began_at = clock()
        right: bool = self._context.verify(password, password_hash)
        self._seconds[cost].append(clock() - began_at)
        usual = {known: median(seconds) for known, seconds in self._seconds.copy().items()}
        dearest = max(usual, key=lambda known: usual[known])
        self._spend(usual[dearest] - usual[cost], _clock_of(dearest))
        return right

    @cached_property
    def _nobodys_hash(self) -> str:
        password_hash: str = self._context.hash(token_urlsafe())
        return password_hash

    def _spend(self, seconds: float, clock: Callable[[], float]) -> None:
        """Compute for so long what nobody needs."""
        end = clock() + seconds
        while (left := end - (began_at := clock())) > 0:
            passes = max(1, int(left / self._seconds_of_filler))
            hash_secret_raw(b"", bytes(16), passes, _FILLER_KIB, 1, 16, Type.ID)
            self._seconds_of_filler = max(1e-5, (clock() - began_at) / passes)

    async def _run(self, work: Callable[[], T]) -> T:
        if not self.pending:
            self._waited = 0.0  # that was another burst
        wait = self.pending / self._threads * self._took
        too_many = self._waited > BURST_SECONDS and wait > LONGEST_WAIT_SECONDS
        if too_many or self.pending >= self._queue:
            raise HashingQueueFull
        self.pending += 1
        came_at = monotonic()

        def begin() -> T:
            self._waited = monotonic() - came_at
            # Not how long it took: at the lowest priority a hash takes long beside many refusals,
            # and would be the reason for more of them, for ever.
            before = thread_time()
            result = work()
            self._took = thread_time() - before
            return result

        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, begin)
        finally:
            self.pending -= 1


def _clock_of(cost: str) -> Callable[[], float]:
    """Return what measures a hash: where it has several lanes, other threads compute them."""
    return thread_time if cost.endswith(",p=1") else monotonic


def _yield_to_others() -> None:
    """Let hashing run when nothing else wants the core: requests stay quick beside it."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        with suppress(OSError):  # not allowed: then at equal priority
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
