"""The access log: a line for each request, written many at a time.

A LogRecord for each request costs more than the rest of a look-up. Here a request is a tuple in
a list, and the list becomes one LogRecord for all handlers, which the formatters of logs.py
write as one line a request.
"""

import asyncio
import logging
import time
from typing import Final

FLUSH_SECONDS: Final = 0.05
MOST_REQUESTS: Final = 500
"""How many are kept: with one more they are written at once."""
log = logging.getLogger("service.access")


LoggedRequest = tuple[float, str, str, str, int, float, str | None]
"""When, request id, method, route, status, seconds, and the user's id if somebody signed in."""


class LoggedRequests(list[LoggedRequest]):
    """The message of a LogRecord that stands for several lines."""


class AccessLog:
    """Collects requests for FLUSH_SECONDS. Whoever stops the service has to `flush`."""

    def __init__(self) -> None:
        self._requests = LoggedRequests()
        self._timer: asyncio.TimerHandle | None = None

    def add(
        self,
        request_id: str,
        method: str,
        route: str,
        status: int,
        seconds: float,
        user_id: str | None,
    ) -> None:
        requests = self._requests
        requests.append((time.time(), request_id, method, route, status, seconds, user_id))
        if len(requests) > MOST_REQUESTS:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Write the lines of all requests until now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._requests:
            requests, self._requests = self._requests, LoggedRequests()
            log.info(requests)
