"""Who makes the request, and what the access token allows."""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Final, TypeAlias, TypeVar
from urllib.parse import unquote_plus
from uuid import UUID

from aiohttp import web

from service.api.http.app_keys import CONTEXT, SERVICES
from service.api.http.rate_limits import LOGIN, count_client, count_request, count_write
from service.api.http.requests import check_no_body
from service.domain.errors import (
    ClientSecretWrong,
    InsufficientScope,
    InvalidToken,
    NotAllowed,
    NotAuthenticated,
    TokenMissing,
    UserNotFound,
)
from service.domain.oauth import OAuthError
from service.domain.scopes import FOR_CLIENTS, Scope
from service.domain.sessions import OURS, Caller
from service.domain.users import Role
from service.security.access_tokens import AccessToken

T = TypeVar("T", bound=web.StreamResponse)
Handler: TypeAlias = Callable[[web.Request], Awaitable[T]]

_BEARER: Final = re.compile(r"Bearer +(\S+)", re.IGNORECASE)
_BASIC: Final = re.compile(r"Basic +(\S*)", re.IGNORECASE)
_TOKEN: Final = web.RequestKey("_TOKEN", AccessToken)


def needs(
    scope: Scope, *, own: Scope | None = None, limited: bool = True, first_party: bool = False
) -> Callable[[Handler[T]], Handler[T]]:
    """Let a handler answer only requests with an access token that has the scope (RFC 6750).

    With a scope of FOR_CLIENTS a user must also be an admin now, unless the scope `own` is enough
    for what concerns the user alone: see `current_reader`. A `first_party` call refuses the tokens
    of other applications. RATE_LIMIT_WRITE counts a user's writes unless `limited` is false, and
    only after the token is accepted: a refused one uses up nobody's limit. RATE_LIMIT_CLIENT counts
    each call of a client on its own behalf. Raises TokenMissing, InvalidToken, ClientSecretWrong,
    InsufficientScope, NotAllowed or TooMany, and what `check_no_body` does.
    """

    for_clients = scope in FOR_CLIENTS and own is None

    def decorate(handler: Handler[T]) -> Handler[T]:
        @wraps(handler)
        async def checked(request: web.Request) -> T:
            token = await _authenticate(request)
            if scope not in token.scopes and own not in token.scopes:
                _refuse(token, scope)
            if first_party:
                check_first_party(token)
            writes = request.method not in {"GET", "HEAD"}
            if token.user_id is None:
                await count_client(request, token.client_id)
            elif limited and writes:
                await count_write(request, token.user_id)
            request[_TOKEN] = token
            await check_no_body(request)
            if for_clients:
                await _check_admin(request)
            return await handler(request)

        checked.needs = scope  # type: ignore[attr-defined]
        checked.own = own  # type: ignore[attr-defined]
        checked.limited = limited  # type: ignore[attr-defined]
        return checked

    return decorate


def scope_of(handler: object) -> Scope | None:
    """Return the scope that the handler needs, None if anyone may call it."""
    return getattr(handler, "needs", None)


def own_scope_of(handler: object) -> Scope | None:
    """Return the scope that is enough for what concerns the user alone, None if there is none."""
    return getattr(handler, "own", None)


def is_limited(handler: object) -> bool:
    """Whether RATE_LIMIT_WRITE counts a user's writes through the handler."""
    return getattr(handler, "limited", False)


async def _authenticate(request: web.Request) -> AccessToken:
    headers = request.headers.getall("Authorization", ())
    if not headers:
        raise TokenMissing
    header = ", ".join(headers)
    if basic := _BASIC.fullmatch(header):
        token = await _authenticate_client(request, basic[1])
    elif bearer := _BEARER.fullmatch(header):
        token = await request.app[SERVICES].sessions.authenticate(bearer[1])
    else:
        raise TokenMissing("The Authorization header is not `Bearer TOKEN`.")
    request[CONTEXT].user_id = token.subject
    return token


async def _authenticate_client(request: web.Request, encoded: str) -> AccessToken:
    """Return what a client may do that sends its secret with the request.

    A wrong secret counts as a sign-in. Raises ClientSecretWrong or TooMany.
    """
    try:
        client_id, secret = read_basic(encoded)
        return await request.app[SERVICES].oauth.act_as_client(client_id, secret)
    except (ValueError, OAuthError) as error:
        await count_request(request, LOGIN)
        raise ClientSecretWrong from error


def read_basic(encoded: str) -> tuple[str, str]:
    """Return the client's id and secret (RFC 6749, 2.3.1); raise ValueError if malformed."""
    try:
        raw = base64.b64decode(encoded.encode("ascii"), validate=True).decode()
    except binascii.Error as error:
        raise ValueError("not base64") from error
    client_id, _, secret = raw.partition(":")
    return unquote_plus(client_id), unquote_plus(secret)


def _refuse(token: AccessToken, scope: Scope) -> None:
    """Raise InsufficientScope, or NotAllowed where no token of the user would be enough."""
    is_ours = token.user_id is not None and token.client_id in OURS
    if is_ours and scope in FOR_CLIENTS - {Scope.ADMIN}:
        raise NotAllowed("This call is for clients acting on their own behalf, and for admins.")
    raise InsufficientScope(scope)


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
        raise NotAllowed(
            "Only the user can do this, signed in directly rather than through an application."
        )


def current_client(request: web.Request) -> str:
    """Return who makes a client's call, as `client:ID` or, if it is an admin, `user:ID`."""
    token = current_token(request)
    return f"client:{token.client_id}" if token.user_id is None else f"user:{token.user_id}"


async def is_of_client(request: web.Request, scope: Scope) -> bool:
    """Whether a call that anyone may make comes from a client, or an admin, with the scope.

    Raises TooMany as `needs` does.
    """
    try:
        token = request[_TOKEN] = await _authenticate(request)
        if scope in token.scopes:
            await _check_admin(request)
    except (NotAuthenticated, NotAllowed):
        return False
    if token.user_id is None:
        await count_client(request, token.client_id)
    return scope in token.scopes


async def current_reader(request: web.Request) -> UUID | None:
    """Return the user who may see what is their own, or None for clients and admins, who see all.

    For handlers that need a scope of clients, or an `own` one of users.
    """
    token = current_token(request)
    needed = scope_of(request.match_info.handler)
    if token.user_id is None or needed not in token.scopes:
        return token.user_id
    try:
        await _check_admin(request)
    except NotAllowed:
        return token.user_id
    return None


async def _check_admin(request: web.Request) -> None:
    """Raise NotAllowed unless the token is a client's, or of a user who is an admin now.

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
