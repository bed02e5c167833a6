"""Refusing requests before any work is done for them, when a worker has too many at once.

Requests take turns on one event loop. With so many that a turn takes long, all are answered late,
health checks included, and in the end only after their clients have left. With few, a turn takes
long because something else has the core: then refusing would gain nothing.
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
"""With no more than this many under way, the loop is late for another reason."""
_TICK_SECONDS: Final = 0.02
_TURNS: Final = 4
"""How many turns the lateness is averaged over."""


class LoadShedder:
    """Refuses as large a share of the requests as makes the event loop late."""

    def __init__(self) -> None:
        self.share = 0.0
        """The share of requests to refuse, from 0 to 1."""
        self.under_way = 0
        """How many requests have begun and are not answered yet."""
        self._most = 0
        """The most requests under way at once since the last tick."""
        self._late = 0.0
        self._refused = 0.0

    def begin(self) -> None:
        """Count a request as under way; the caller subtracts it once it is answered."""
        self.under_way += 1
        if self.under_way > self._most:
            self._most = self.under_way

    def check(self) -> None:
        """Raise Overloaded if the next request is one to refuse."""
        self._refused += self.share
        if self._refused >= 1:
            self._refused -= 1
            raise Overloaded

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure continually how late the running event loop is."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def tick(due: float) -> None:
            nonlocal timer
            now = time.monotonic()
            late = now - due if self._most > MANY else 0.0
            self._most = self.under_way
            # One long turn, however long, or one burst of requests is not an overload.
            self._late += (min(late, _TURNS * LATE_SECONDS) - self._late) / _TURNS
            self.share = 1 - LATE_SECONDS / max(LATE_SECONDS, self._late)
            timer = loop.call_later(_TICK_SECONDS, tick, now + _TICK_SECONDS)

        timer = loop.call_later(_TICK_SECONDS, tick, time.monotonic() + _TICK_SECONDS)
        try:
            yield
        finally:
            timer.cancel()
