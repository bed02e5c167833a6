"""Refusing a request when its client, or the account concerned, has made too many.

The headers show only the windows of the client's address and of the signed-in user: an account's
window would reveal what others do there.
"""

from collections.abc import Awaitable
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
CLIENT: Final = "client"


def count_request(
    request: web.Request, name: str, account: str | None = None
) -> Awaitable[Window | None]:
    """Count the request for its client's address and, if given, for an account.

    Returns the window of the address, or None where there is no limit. Raises TooMany if the limit
    `name` is exceeded; the request is counted all the same.
    """
    subjects = [(name, client_address(request))]
    if account is not None:
        subjects.append((f"{name}-account", account))
    return _count(request, name, subjects)


async def count_write(request: web.Request, user_id: UUID) -> None:
    """Count a user's write, whatever session or client it comes from; raise TooMany."""
    await _count(request, WRITE, [(WRITE, str(user_id))])


async def count_client(request: web.Request, client_id: str) -> None:
    """Count a call that a client makes on its own behalf; raise TooMany."""
    await _count(request, CLIENT, [(CLIENT, client_id)])


async def _count(request: web.Request, name: str, subjects: list[tuple[str, str]]) -> Window | None:
    """Count the request for all subjects; show and return the window of the first one."""
    app = request.app
    limit = app[RATE_LIMITS][name]
    if limit is None:
        return None
    windows = await app[SERVICES].rate_limiter.count(limit, subjects)
    context = request[CONTEXT]
    context.windows = [*context.windows, windows[0]]
    for window in windows:
        if window.exceeded:
            raise refusal(name, max(each.reset for each in windows if each.exceeded))
    return windows[0]


def refusal(name: str, wait: int) -> TooMany:
    """Return a refusal, and count it; `wait` is in seconds."""
    RATE_LIMITED[name,] += 1
    return TooMany(f"Too many requests; the next one may come in {wait} s.", wait=wait)
