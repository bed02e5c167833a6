"""Refusing a request when its client, or the account it is about, has made too many."""

from typing import Final

from aiohttp import web

from service.api.keys import RATE_LIMITER, RATE_LIMITS, WINDOWS
from service.api.requests import client_address
from service.domain.errors import TooMany
from service.metrics import RATE_LIMITED

REGISTER: Final = "register"
LOGIN: Final = "login"
LOOKUP: Final = "lookup"
MAIL: Final = "mail"
VERIFICATION: Final = "verification"


async def count_request(request: web.Request, name: str, account: str | None = None) -> None:
    """Count the request for its client's address and, if given, for an account.

    Raises TooMany where the limit `name` is exceeded; the request is counted all the same.
    """
    limit = request.app[RATE_LIMITS][name]
    if limit is None:
        return
    subjects = [(name, client_address(request))]
    if account is not None:
        subjects.append((f"{name}-account", account))
    windows = await request.app[RATE_LIMITER].count(limit, subjects)
    request[WINDOWS] = [*request.get(WINDOWS, ()), *windows]
    exceeded = [window for window in windows if window.exceeded]
    if exceeded:
        RATE_LIMITED.labels(name).inc()
        wait = max(window.reset for window in exceeded)
        raise TooMany(f"Too many requests; the next one may come in {wait} s.", retry_after=wait)
