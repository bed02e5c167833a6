"""Who makes the request, and what the access token allows."""

import re
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Final, TypeAlias, TypeVar

from aiohttp import web

from service.api.http.app_keys import CONTEXT, SERVICES
from service.api.http.rate_limits import count_write
from service.domain.errors import (
    InsufficientScope,
    InvalidToken,
    NotAllowed,
    TokenMissing,
    UserNotFound,
)
from service.domain.scopes import Scope
from service.domain.sessions import OURS, Caller
from service.domain.users import Role
from service.security.access_tokens import AccessToken

T = TypeVar("T", bound=web.StreamResponse)
Handler: TypeAlias = Callable[[web.Request], Awaitable[T]]

_BEARER: Final = re.compile(r"Bearer +(\S+)", re.IGNORECASE)
_TOKEN: Final = web.RequestKey("_TOKEN", AccessToken)


def needs(
    scope: Scope, *, limited: bool = True, first_party: bool = False
) -> Callable[[Handler[T]], Handler[T]]:
    """Let a handler answer only requests with an access token that has the scope (RFC 6750).

    A `first_party` call refuses the tokens of other applications. RATE_LIMIT_WRITE counts a user's
    writes unless `limited` is false, and only after the token is accepted: a refused one uses up
    nobody's limit. Raises TokenMissing, InvalidToken, InsufficientScope, NotAllowed or TooMany.
    """

    def decorate(handler: Handler[T]) -> Handler[T]:
        @wraps(handler)
        async def checked(request: web.Request) -> T:
            token = await _authenticate(request)
            if scope not in token.scopes:
                raise InsufficientScope(scope)
            if first_party:
                check_first_party(token)
            writes = request.method not in {"GET", "HEAD"}
            if limited and writes and token.user_id is not None:
                await count_write(request, token.user_id)
            request[_TOKEN] = token
            return await handler(request)

        checked.needs = scope  # type: ignore[attr-defined]
        checked.limited = limited  # type: ignore[attr-defined]
        return checked

    return decorate


def scope_of(handler: object) -> Scope | None:
    """Return the scope that the handler needs, None if anyone may call it."""
    return getattr(handler, "needs", None)


def is_limited(handler: object) -> bool:
    """Whether RATE_LIMIT_WRITE counts a user's writes through the handler."""
    return getattr(handler, "limited", False)


async def _authenticate(request: web.Request) -> AccessToken:
    headers = request.headers.getall("Authorization", ())
    if not headers:
        raise TokenMissing
    credentials = _BEARER.fullmatch(", ".join(headers))
    if credentials is None:
        raise TokenMissing("The Authorization header is not `Bearer TOKEN`.")
    token = await request.app[SERVICES].sessions.authenticate(credentials[1])
    request[CONTEXT].user_id = token.subject
    return token


def current_token(request: web.Request) -> AccessToken:
    """Return the access token that `needs` has accepted, a user's or a client's."""
    return request[_TOKEN]


def current_user(request: web.Request) -> Caller:
    """Return the user whose access token it is; raise NotAllowed if it is a client's own."""
    token = current_token(request)
    if token.user_id is None:
        raise NotAllowed("This call is for users, not for clients acting on their own behalf.")
    return Caller(user_id=token.user_id, session_id=token.session_id)


def check_first_party(token: AccessToken) -> None:
    """Raise NotAllowed if the token is a user's, and issued to another application.

    Such an application may be anyone's: it must not take the account away from its owner.
    """
    if token.user_id is not None and token.client_id not in OURS:
        raise NotAllowed("Only the user can do this, signed in directly, not an application.")


async def current_admin(request: web.Request) -> AccessToken:
    """Return the token of a client, or of a user who is an admin now; otherwise raise NotAllowed.

    A client has the scope because an operator granted it; a user's role is read from the database.
    """
    token = current_token(request)
    if token.user_id is not None:
        try:
            user = await request.app[SERVICES].users.find(token.user_id)
        except UserNotFound as error:  # erased since the session was checked
            raise InvalidToken from error
        if user.role is not Role.ADMIN:
            raise NotAllowed("This call is for admins.")
    return token
