"""Refusing a request when its client, or the account it is about, has made too many.

The headers show only windows of the client's address and of the signed-in user: the window of an
account would reveal what others do there.
"""

from typing import Final
from uuid import UUID

from aiohttp import web

from service.api.http.app_keys import CONTEXT, RATE_LIMITS, SERVICES
from service.api.http.client_address import client_address
from service.domain.errors import TooMany
from service.redis.rate_limits import Window
from service.telemetry.metrics import RATE_LIMITED

REGISTER: Final = "register"
LOGIN: Final = "login"
LOOKUP: Final = "lookup"
MAIL: Final = "mail"
VERIFICATION: Final = "verification"
WRITE: Final = "write"


class Admission:
    """Whether a request may go on: known a moment after it is asked."""

    __slots__ = ("_request", "_window")

    def __init__(self, request: web.Request, window: Window | None) -> None:
        self._request = request
        self._window = window

    async def check(self) -> None:
        """Raise TooMany, the first time, where the limit is exceeded."""
        window = self._window
        if window is not None:
            self._window = None
            await window.settle()
            self._request[CONTEXT].windows = [window]
            if window.exceeded:
                raise refusal(window.name, window.reset)


async def count_request(
    request: web.Request, name: str, account: str | None = None
) -> Window | None:
    """Count the request for its client's address and, if given, for an account.

    Returns the window of the address, None where there is no limit. Raises TooMany where the limit
    `name` is exceeded; the request is counted all the same.
    """
    subjects = [(name, client_address(request))]
    if account is not None:
        subjects.append((f"{name}-account", account))
    return await _count(request, name, subjects)


async def count_write(request: web.Request, user_id: UUID) -> None:
    """Count a write of a user, whatever session or client it comes from; raise TooMany."""
    await _count(request, WRITE, [(WRITE, str(user_id))])


async def _count(request: web.Request, name: str, subjects: list[tuple[str, str]]) -> Window | None:
    """Count the request for all subjects; show and return the window of the first one."""
    limit = request.app[RATE_LIMITS][name]
    if limit is None:
        return None
    windows = await request.app[SERVICES].rate_limiter.count(limit, subjects)
    context = request[CONTEXT]
    context.windows = [*context.windows, windows[0]]
    if resets := [window.reset for window in windows if window.exceeded]:
        raise refusal(name, max(resets))
    return windows[0]


def start_count(request: web.Request, name: str) -> Admission:
    """Begin to count the request for its client's address; the caller has to check.

    What the caller asks of Redis meanwhile goes there and back together with the count.
    """
    app = request.app
    limit = app[RATE_LIMITS][name]
    if limit is None:
        return Admission(request, None)
    return Admission(
        request, Window(app[SERVICES].rate_limiter, name, limit, client_address(request))
    )


def refusal(name: str, wait: int) -> TooMany:
    """Return a refusal, and count it; `wait` is in seconds."""
    RATE_LIMITED[name,] += 1
    return TooMany(f"Too many requests; the next one may come in {wait} s.", wait=wait)
