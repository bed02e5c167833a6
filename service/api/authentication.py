"""Who makes the request."""

from aiohttp import web

from service.api.keys import SESSIONS, USER_ID, USERS
from service.domain.errors import NotAllowed, TokenMissing
from service.domain.sessions import Caller
from service.domain.users import Role


async def current_user(request: web.Request) -> Caller:
    """Return who sends the access token; raise TokenMissing or InvalidToken (RFC 6750)."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise TokenMissing
    caller = await request.app[SESSIONS].authenticate(token.strip())
    request[USER_ID] = str(caller.user_id)
    return caller


async def current_admin(request: web.Request) -> Caller:
    """Return the caller if the database says that it is an admin now; else raise NotAllowed."""
    caller = await current_user(request)
    user = await request.app[USERS].find(caller.user_id)
    if user.role is not Role.ADMIN:
        raise NotAllowed("This call is for admins.")
    return caller
