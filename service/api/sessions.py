"""Sessions: signing in, staying signed in, signing out."""

from dataclasses import asdict, dataclass

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, request_schema, response_schema
from marshmallow import Schema, fields

from service.api.docs.openapi import refuses
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import (
    caller_of,
    check_first_party,
    current_first_party_user,
    current_token,
    current_user,
)
from service.api.http.requests import (
    EmailText,
    Moment,
    PageQuery,
    RequestSchema,
    Text,
    header_text,
    read_body,
    read_id,
    read_page,
)
from service.api.http.responses import PageSchema, no_content, respond
from service.api.password_attempts import password_attempt
from service.api.users import EXAMPLE_EMAIL, EXAMPLE_PASSWORD, account_of
from service.domain.errors import (
    AccountDisabled,
    HashingQueueFull,
    InvalidCredentials,
    InvalidToken,
    NotAllowed,
    SessionNotFound,
    TooMany,
)
from service.domain.pages import Page


class LoginSchema(RequestSchema):
    email = EmailText(required=True)
    password = Text(required=True)


class RefreshSchema(RequestSchema):
    refresh_token = Text(required=True)


class PasswordChangeSchema(RequestSchema):
    current_password = Text(required=True)
    new_password = Text(required=True)


class TokensSchema(Schema):
    access_token = fields.String(metadata={"description": "A JWT (RFC 9068): send it as Bearer."})
    token_type = fields.Constant("Bearer")
    expires_in = fields.Integer(
        metadata={"description": "Life of the access token, in seconds.", "example": 600}
    )
    refresh_token = fields.String(metadata={"description": "Good for one refresh."})
    user_id = fields.UUID()


class SessionSchema(Schema):
    id = fields.UUID(attribute="session_id")
    client_id = fields.String(metadata={"example": "first-party"})
    origin = fields.String(metadata={"description": "How it began.", "example": "password"})
    user_agent = fields.String(allow_none=True)
    created_at = Moment()
    refreshed_at = Moment()
    expires_at = Moment()
    current = fields.Boolean(metadata={"description": "Whether this request belongs to it."})


class SessionsSchema(PageSchema):
    items = fields.List(fields.Nested(SessionSchema))


@dataclass(frozen=True, slots=True)
class Login:
    email: str
    password: str


@dataclass(frozen=True, slots=True)
class Refresh:
    refresh_token: str


@dataclass(frozen=True, slots=True)
class PasswordChange:
    current_password: str
    new_password: str


LOGIN_SCHEMA = LoginSchema()
REFRESH_SCHEMA = RefreshSchema()
PASSWORD_CHANGE_SCHEMA = PasswordChangeSchema()
TOKENS_SCHEMA = TokensSchema()
SESSIONS_SCHEMA = SessionsSchema()


@docs(
    tags=["Sessions"],
    summary="Sign in",
    description="A wrong email address and a wrong password get the same answer, in the same time.",
)
@request_schema(LoginSchema, example={"email": EXAMPLE_EMAIL, "password": EXAMPLE_PASSWORD})
@response_schema(TokensSchema, 200, description="The tokens of a new session.")
@refuses(InvalidCredentials, AccountDisabled, TooMany, HashingQueueFull)
async def log_in(request: web.Request) -> web.Response:
    login = await read_body(request, LOGIN_SCHEMA, into=Login)
    async with password_attempt(request, account_of(login.email), signs_in=True):
        tokens = await request.app[SERVICES].sessions.log_in(
            login.email, login.password, header_text(request, "User-Agent")
        )
    return respond(TOKENS_SCHEMA, tokens)


@docs(
    tags=["Sessions"],
    summary="Refresh the tokens",
    description="Gives new tokens for a refresh token, once. Sending an old one ends the session.",
)
@request_schema(RefreshSchema, example={"refresh_token": "AZ8r…"})
@response_schema(TokensSchema, 200, description="The session's new tokens.")
@refuses(InvalidToken)
async def refresh(request: web.Request) -> web.Response:
    body = await read_body(request, REFRESH_SCHEMA, into=Refresh)
    return respond(TOKENS_SCHEMA, await request.app[SERVICES].sessions.refresh(body.refresh_token))


@docs(
    tags=["Sessions"],
    summary="Sign out",
    description="The session's tokens stop working at once.",
    responses={204: {"description": "The session has ended."}},
)
async def log_out(request: web.Request) -> web.Response:
    caller = await current_user(request)
    await request.app[SERVICES].sessions.end(caller, caller.session_id)
    return no_content()


@docs(
    tags=["Sessions"],
    summary="List my sessions",
    description="Newest first.",
)
@querystring_schema(PageQuery)
@response_schema(SessionsSchema, 200, description="The open sessions, newest first.")
async def list_sessions(request: web.Request) -> web.Response:
    caller = await current_user(request)
    page = await request.app[SERVICES].sessions.page(caller.user_id, *read_page(request))
    shown = [
        {**asdict(session), "current": session.session_id == caller.session_id}
        for session in page.items
    ]
    return respond(SESSIONS_SCHEMA, Page(shown, page.next_cursor))


@docs(
    tags=["Sessions"],
    summary="End one of my sessions",
    description="A token of another application ends its own session only.",
    responses={204: {"description": "The session has ended."}},
)
@refuses(NotAllowed, SessionNotFound)
async def end_session(request: web.Request) -> web.Response:
    token = await current_token(request)
    session_id = read_id(request, "session_id")
    if session_id != token.session_id:
        check_first_party(token)
    caller = caller_of(token)
    if session_id is None:
        raise SessionNotFound
    await request.app[SERVICES].sessions.end(caller, session_id)
    return no_content()


@docs(
    tags=["Sessions"],
    summary="End my other sessions",
    description="Not for tokens of other applications.",
    responses={204: {"description": "Only the current session is left."}},
)
@refuses(NotAllowed)
async def end_other_sessions(request: web.Request) -> web.Response:
    await request.app[SERVICES].sessions.end_others(await current_first_party_user(request))
    return no_content()


@docs(
    tags=["Sessions"],
    summary="Change my password",
    description="Ends the other sessions. Not for tokens of other applications.",
    responses={204: {"description": "The new password holds."}},
)
@request_schema(
    PasswordChangeSchema,
    example={"current_password": EXAMPLE_PASSWORD, "new_password": "a longer walk by the sea"},
)
@refuses(NotAllowed, InvalidCredentials, TooMany, HashingQueueFull)
async def change_password(request: web.Request) -> web.Response:
    caller = await current_first_party_user(request)
    users = request.app[SERVICES].users
    change = await read_body(
        request,
        PASSWORD_CHANGE_SCHEMA,
        PasswordChange,
        ("new_password", lambda its: users.check_password(its["new_password"])),
    )
    async with password_attempt(request, str(caller.user_id)):
        await request.app[SERVICES].passwords.change(
            caller, change.current_password, change.new_password
        )
    return no_content()
