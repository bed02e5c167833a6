"""Attempts to prove a password: counted before it is hashed, so that guessing stays slow.

Three counts, and only wrong passwords stay in them:

- for the client's address, whatever the account: RATE_LIMIT_LOGIN, refused beyond it;
- for the account as tried from this address: after some failures in a row each further attempt has
  to wait twice as long;
- for the account from everywhere: beyond RATE_LIMIT_LOGIN an attempt is held up a little, but never
  refused, or a stranger could lock the owner out. Where the owner has signed in before, it is not.

Whether the account exists changes none of it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from service.api.keys import FAILURES, KNOWN_ADDRESSES, RATE_LIMITER
from service.api.rate_limits import LOGIN, count_request, refusal
from service.api.requests import client_address
from service.domain.errors import InvalidCredentials
from service.rate_limits import Window

FIRST_DELAY_SECONDS: Final = 0.1
LONGEST_DELAY_SECONDS: Final = 2.0


@asynccontextmanager
async def password_attempt(
    request: web.Request, account: str, *, signs_in: bool = False
) -> AsyncIterator[None]:
    """Go around checking a password; raise TooMany where it may not be checked.

    `account` is the key of an email address to sign in with, or the id of a user who is signed in
    and has to prove it once more.
    """
    window = await count_request(request, LOGIN)
    if window is None:
        yield
        return
    address, failures, known = (
        client_address(request),
        request.app[FAILURES],
        request.app[KNOWN_ADDRESSES],
    )
    early = await failures.begin(account, address)
    if early:
        raise refusal(LOGIN, -(-early // 1000))
    windows = [window]
    if not (signs_in and await known.include(account, address)):
        subjects = [(f"{LOGIN}-account", account)]
        windows += await request.app[RATE_LIMITER].count(window.limit, subjects)
        await asyncio.sleep(delay_of(windows[-1]))
    try:
        yield
    except InvalidCredentials:
        raise
    except Exception:  # nothing was said about the password
        await asyncio.gather(failures.take_back(account, address), *map(Window.take_back, windows))
        raise
    await asyncio.gather(failures.forget(account, address), *map(Window.take_back, windows))
    if signs_in:
        await known.add(account, address)


async def forget_failures(request: web.Request, account: str) -> None:
    """Let nobody wait here for failures of before the password was reset."""
    await request.app[FAILURES].forget(account, client_address(request))


def delay_of(window: Window) -> float:
    """Return for how many seconds an attempt is held up: twice as long for each one too many."""
    too_many = window.count - window.limit.requests
    if too_many <= 0:
        return 0
    return min(FIRST_DELAY_SECONDS * 2.0 ** min(too_many - 1, 10), LONGEST_DELAY_SECONDS)
