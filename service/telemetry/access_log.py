"""The access log: a line for each request, written many at a time.

A LogRecord for each request costs more than the rest of a look-up. Here a request is a tuple in
a list, and one LogRecord has the list as its `requests`, which the formatters of logs.py write as
one line each. The requests are also measured together.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

FLUSH_SECONDS: Final = 0.1
MOST_REQUESTS: Final = 500
"""How many are kept: with one more they are written at once."""
log = logging.getLogger("service.access")

LoggedRequest = tuple[float, str, str, str, int, float, str | None]
"""When, request id, method, route, status, seconds, and the id of the user who is signed in."""


class AccessLog:
    """Collects requests for FLUSH_SECONDS; has to be flushed before the process ends."""

    def __init__(self, measure: Callable[[list[LoggedRequest]], None]) -> None:
        self._measure = measure
        self._requests: list[LoggedRequest] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, request: LoggedRequest) -> None:
        requests = self._requests
        requests.append(request)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        elif len(requests) > MOST_REQUESTS:
            self.flush()

    def flush(self) -> None:
        """Write the lines of all requests until now, and measure them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._requests:
            requests, self._requests = self._requests, []
            self._measure(requests)
            log.info("%d requests", len(requests), extra={"requests": requests})
