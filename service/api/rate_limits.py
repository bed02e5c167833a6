"""Refusing a request when its client, or the account it is about, has made too many."""

from typing import Final

from aiohttp import web

from service.api.keys import CONTEXT, RATE_LIMITER, RATE_LIMITS
from service.api.requests import client_address
from service.domain.errors import TooMany
from service.metrics import RATE_LIMITED
from service.rate_limits import Window

REGISTER: Final = "register"
LOGIN: Final = "login"
LOOKUP: Final = "lookup"
MAIL: Final = "mail"
VERIFICATION: Final = "verification"


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
                raise _refusal(window.name, [window])


async def count_request(request: web.Request, name: str, account: str | None = None) -> None:
    """Count the request for its client's address and, if given, for an account.

    Raises TooMany where the limit `name` is exceeded; the request is counted all the same.
    """
    limit = request.app[RATE_LIMITS][name]
    if limit is not None:
        subjects = [(name, client_address(request))]
        if account is not None:
            subjects.append((f"{name}-account", account))
        windows = await request.app[RATE_LIMITER].count(limit, subjects)
        context = request[CONTEXT]
        context.windows = [*context.windows, *windows]
        exceeded = [window for window in windows if window.exceeded]
        if exceeded:
            raise _refusal(name, exceeded)


async def count_sign_in(request: web.Request, account: str) -> None:
    """Count an attempt to sign in, before the password is hashed; raise TooMany.

    An address from which somebody has signed in to the account before has a window of its own: by
    guessing from elsewhere nobody locks the owner out.
    """
    address = client_address(request)
    limited = request.app[RATE_LIMITS][LOGIN] is not None
    if limited and await request.app[RATE_LIMITER].knows(account, address):
        account = f"{account} {address}"
    await count_request(request, LOGIN, account=account)


async def note_sign_in(request: web.Request, account: str) -> None:
    """Note that an attempt has succeeded."""
    if request.app[RATE_LIMITS][LOGIN] is not None:
        await request.app[RATE_LIMITER].remember(account, client_address(request))


def start_count(request: web.Request, name: str) -> Admission:
    """Begin to count the request for its client's address; the caller has to check.

    What the caller asks of Redis meanwhile goes there and back together with the count.
    """
    app = request.app
    limit = app[RATE_LIMITS][name]
    if limit is None:
        return Admission(request, None)
    return Admission(request, Window(app[RATE_LIMITER], name, limit, client_address(request)))


def _refusal(name: str, exceeded: list[Window]) -> TooMany:
    RATE_LIMITED.labels(name).inc()
    wait = max(window.reset for window in exceeded)
    return TooMany(f"Too many requests; the next one may come in {wait} s.", retry_after=wait)
