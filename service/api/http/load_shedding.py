"""Refusing requests before any work is done for them, when a worker has too many at once.

All of them take turns on one event loop. With so many that a turn takes long, each is answered
late, health checks too, and in the end all are answered when their clients have left. With few,
a turn takes long because others have the core: then refusing would win nothing.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from service.domain.errors import Overloaded

LATE_SECONDS: Final = 0.02
"""How late the event loop may be: a request waits for a turn or two of it."""
MANY: Final = 50
"""With no more than so many under way the loop is late for another reason."""
_TICK_SECONDS: Final = 0.02
_TURNS: Final = 4
"""Over so many the lateness is averaged."""


class LoadShedder:
    """Whom there is no time for: as many as would have to be less for the loop not to be late."""

    def __init__(self) -> None:
        self.share = 0.0
        """How many of the requests are to be refused, from 0 to 1."""
        self.under_way = 0
        """How many requests have begun and are not answered."""
        self._most = 0
        """So many were under way at once since it was looked last."""
        self._late = 0.0
        self._refused = 0.0

    def begin(self) -> None:
        """Count a request as under way; whoever does so counts it off when it is answered."""
        self.under_way += 1
        if self.under_way > self._most:
            self._most = self.under_way

    def check(self) -> None:
        """Raise Overloaded if the next request is one of those."""
        self._refused += self.share
        if self._refused >= 1:
            self._refused -= 1
            raise Overloaded

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look all the while how late the running event loop is."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def tick(due: float) -> None:
            nonlocal timer
            now = time.monotonic()
            late = now - due if self._most > MANY else 0.0
            self._most = self.under_way
            # One turn that took long, however long, or many who came at once, are no overload.
            self._late += (min(late, _TURNS * LATE_SECONDS) - self._late) / _TURNS
            self.share = 1 - LATE_SECONDS / max(LATE_SECONDS, self._late)
            timer = loop.call_later(_TICK_SECONDS, tick, now + _TICK_SECONDS)

        timer = loop.call_later(_TICK_SECONDS, tick, time.monotonic() + _TICK_SECONDS)
        try:
            yield
        finally:
            timer.cancel()
