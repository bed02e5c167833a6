"""Password attempts: counted before the password is hashed, so that guessing stays slow.

There are three counts, and only wrong passwords stay in them:

- by client address, whatever the account: attempts beyond RATE_LIMIT_LOGIN are refused;
- by account and client address: after some failures in a row, each further one doubles the pause
  before the next attempt;
- by account, over all addresses: attempts beyond RATE_LIMIT_LOGIN are delayed but never refused,
  or a stranger could lock the owner out. From an address where the owner has signed in before
  they are not delayed.

None of it depends on whether the account exists.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from service.api.http.app_keys import SERVICES
from service.api.http.client_address import client_address
from service.api.http.rate_limits import LOGIN, count_request, refusal
from service.domain.errors import InvalidCredentials
from service.redis.rate_limits import Window

FIRST_DELAY_SECONDS: Final = 0.1
LONGEST_DELAY_SECONDS: Final = 2.0


@asynccontextmanager
async def password_attempt(
    request: web.Request, account: str, *, signs_in: bool = False
) -> AsyncIterator[None]:
    """Count the password check in the block as one attempt; raise TooMany to prevent it.

    `account` is the email key of a sign-in, or the id of a signed-in user who confirms something
    with the password.
    """
    window = await count_request(request, LOGIN)
    if window is None:
        yield
        return
    services = request.app[SERVICES]
    failures, known, limiter = services.failures, services.known_addresses, services.rate_limiter
    address = client_address(request)
    early = await failures.begin(account, address)
    if early:
        raise refusal(LOGIN, -(-early // 1000))
    windows = [window]
    if not (signs_in and await known.include(account, address)):
        subjects = [(f"{LOGIN}-account", account)]
        windows += await limiter.count(window.limit, subjects)
        await asyncio.sleep(delay_of(windows[-1]))
    try:
        yield
    except InvalidCredentials:
        raise
    except Exception:  # which says nothing about the password
        await asyncio.gather(failures.take_back(account, address), limiter.take_back(windows))
        raise
    await asyncio.gather(failures.forget(account, address), limiter.take_back(windows))
    if signs_in:
        await known.add(account, address)


async def forget_failures(request: web.Request, account: str) -> None:
    """Forget the failures from this address, because the password was reset."""
    await request.app[SERVICES].failures.forget(account, client_address(request))


def delay_of(window: Window) -> float:
    """Return the delay of an attempt in seconds: it doubles with each attempt over the limit."""
    too_many = window.count - window.limit.requests
    if too_many <= 0:
        return 0
    return min(FIRST_DELAY_SECONDS * 2.0 ** min(too_many - 1, 10), LONGEST_DELAY_SECONDS)
