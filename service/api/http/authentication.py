"""Who makes the request, and what the access token allows."""

import re
from typing import Final

from aiohttp import web

from service.api.http.app_keys import CONTEXT, SERVICES
from service.api.http.rate_limits import count_write
from service.api.http.scopes import SCOPE_OF, is_counted_write
from service.domain.errors import (
    InsufficientScope,
    InvalidToken,
    NotAllowed,
    TokenMissing,
    UserNotFound,
)
from service.domain.sessions import OURS, Caller
from service.domain.users import Role
from service.security.access_tokens import AccessToken

_BEARER: Final = re.compile(r"Bearer +(\S+)", re.IGNORECASE)


async def current_token(request: web.Request) -> AccessToken:
    """Return the access token, a user's or a client's, that allows this call (RFC 6750).

    A user's write is counted, after all else: what is refused here uses up nobody's limit. Raises
    TokenMissing, InvalidToken, InsufficientScope or TooMany.
    """
    headers = request.headers.getall("Authorization", ())
    if not headers:
        raise TokenMissing
    credentials = _BEARER.fullmatch(", ".join(headers))
    if credentials is None:
        raise TokenMissing("The Authorization header is not `Bearer TOKEN`.")
    token = await request.app[SERVICES].sessions.authenticate(credentials[1])
    request[CONTEXT].user_id = token.subject
    resource = request.match_info.route.resource
    assert resource is not None
    # HEAD is GET without the body.
    method = "GET" if request.method == "HEAD" else request.method
    call = method, resource.canonical
    needed = SCOPE_OF[call]
    if needed not in token.scopes:
        raise InsufficientScope(scope=needed)
    if token.user_id is not None and is_counted_write(*call):
        await count_write(request, token.user_id)
    return token


async def current_user(request: web.Request) -> Caller:
    """Return the user whose access token allows this call; raise NotAllowed if it is no user's."""
    return caller_of(await current_token(request))


async def current_first_party_user(request: web.Request) -> Caller:
    """Return the user whose access token allows this call, and is none of another application's.

    Such an application may be anyone's: it must not take the account away from its owner. Raises
    NotAllowed.
    """
    token = await current_token(request)
    check_first_party(token)
    return caller_of(token)


def check_first_party(token: AccessToken) -> None:
    """Raise NotAllowed if the token is another application's than the service's own."""
    if token.user_id is not None and token.client_id not in OURS:
        raise NotAllowed(
            "Only the user can do this, signed in here and not through an application."
        )


def caller_of(token: AccessToken) -> Caller:
    """Return whose access token it is; raise NotAllowed if it is no user's."""
    if token.user_id is None:
        raise NotAllowed("This call is for users, not for clients of their own.")
    return Caller(user_id=token.user_id, session_id=token.session_id)


async def current_admin(request: web.Request) -> AccessToken:
    """Return the token of a client, or of a user who is an admin now; otherwise raise NotAllowed.

    A client has the scope because an operator gave it, a user's role is asked of the database.
    """
    token = await current_token(request)
    if token.user_id is not None:
        try:
            user = await request.app[SERVICES].users.find(token.user_id)
        except UserNotFound as error:  # erased since the session was checked
            raise InvalidToken from error
        if user.role is not Role.ADMIN:
            raise NotAllowed("This call is for admins.")
    return token
