"""Sessions: signing in, staying signed in, signing out."""

from dataclasses import asdict

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, request_schema, response_schema
from marshmallow import Schema, fields

from service.api.http.app_keys import SERVICES
from service.api.http.authentication import check_first_party, current_token, current_user, needs
from service.api.http.fields import Moment, PageQuery, RequestSchema, Text, TrimmedText
from service.api.http.requests import find_id, header_text, read_body, read_page
from service.api.http.responses import PageSchema, no_content, respond
from service.api.password_attempts import password_attempt
from service.api.users import EXAMPLE_EMAIL, EXAMPLE_PASSWORD, account_of, password_rule
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
from service.domain.scopes import Scope


class LoginSchema(RequestSchema):
    email = TrimmedText(required=True)
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
        metadata={"description": "The lifetime of the access token, in seconds.", "example": 600}
    )
    refresh_token = fields.String(metadata={"description": "Valid for one refresh."})
    user_id = fields.UUID()


class SessionSchema(Schema):
    id = fields.UUID(attribute="session_id")
    client_id = fields.String(metadata={"example": "first-party"})
    origin = fields.String(
        metadata={"description": "How the user signed in.", "example": "password"}
    )
    user_agent = fields.String(allow_none=True)
    created_at = Moment()
    refreshed_at = Moment()
    expires_at = Moment()
    current = fields.Boolean(
        metadata={"description": "Whether this request was made with the session."}
    )


class SessionsSchema(PageSchema):
    items = fields.List(fields.Nested(SessionSchema))


@docs(
    tags=["Sessions"],
    summary="Sign in",
    description="An unknown email address and a wrong password get the same response in the same "
    "time.",
    refuses=(InvalidCredentials, AccountDisabled, TooMany, HashingQueueFull),
)
@request_schema(LoginSchema, example={"email": EXAMPLE_EMAIL, "password": EXAMPLE_PASSWORD})
@response_schema(TokensSchema, 200, description="The tokens of a new session.")
async def log_in(request: web.Request) -> web.Response:
    body = await read_body(request)
    async with password_attempt(request, account_of(body["email"]), signs_in=True):
        tokens = await request.app[SERVICES].sessions.log_in(
            body["email"], body["password"], header_text(request, "User-Agent")
        )
    return respond(request, tokens)


@docs(
    tags=["Sessions"],
    summary="Refresh the tokens",
    description="Exchanges a refresh token for new tokens. Sending it a second time ends the "
    "session.",
    refuses=(InvalidToken,),
)
@request_schema(RefreshSchema, example={"refresh_token": "AZ8r…"})
@response_schema(TokensSchema, 200, description="The session's new tokens.")
async def refresh(request: web.Request) -> web.Response:
    body = await read_body(request)
    return respond(request, await request.app[SERVICES].sessions.refresh(body["refresh_token"]))


@docs(
    tags=["Sessions"],
    summary="Sign out",
    description="The session's tokens stop working at once.",
    responses={204: {"description": "The session has ended."}},
)
@needs(Scope.PROFILE, limited=False)
async def log_out(request: web.Request) -> web.Response:
    caller = current_user(request)
    await request.app[SERVICES].sessions.end(caller, caller.session_id)
    return no_content()


@docs(tags=["Sessions"], summary="List my sessions", description="Newest first.")
@querystring_schema(PageQuery)
@response_schema(SessionsSchema, 200, description="The open sessions, newest first.")
@needs(Scope.PROFILE)
async def list_sessions(request: web.Request) -> web.Response:
    caller = current_user(request)
    page = await request.app[SERVICES].sessions.page(caller.user_id, *read_page(request))
    shown = [
        {**asdict(session), "current": session.session_id == caller.session_id}
        for session in page.items
    ]
    return respond(request, Page(shown, page.next_cursor))


@docs(
    tags=["Sessions"],
    summary="End one of my sessions",
    description="A token of another application can end only its own session.",
    responses={204: {"description": "The session has ended."}},
    refuses=(NotAllowed, SessionNotFound),
)
@needs(Scope.PROFILE, limited=False)
async def end_session(request: web.Request) -> web.Response:
    token = current_token(request)
    session_id = find_id(request, "session_id")
    if session_id != token.session_id:
        check_first_party(token)
    caller = current_user(request)
    if session_id is None:
        raise SessionNotFound
    await request.app[SERVICES].sessions.end(caller, session_id)
    return no_content()


@docs(
    tags=["Sessions"],
    summary="End my other sessions",
    description="Not for tokens of other applications.",
    responses={204: {"description": "Only the current session is left."}},
    refuses=(NotAllowed,),
)
@needs(Scope.PROFILE, limited=False, first_party=True)
async def end_other_sessions(request: web.Request) -> web.Response:
    await request.app[SERVICES].sessions.end_others(current_user(request))
    return no_content()


@docs(
    tags=["Sessions"],
    summary="Change my password",
    description="Ends the other sessions. Not for tokens of other applications.",
    responses={204: {"description": "The new password is set."}},
    refuses=(NotAllowed, InvalidCredentials, TooMany, HashingQueueFull),
)
@request_schema(
    PasswordChangeSchema,
    example={"current_password": EXAMPLE_PASSWORD, "new_password": "a longer walk by the sea"},
)
@needs(Scope.PROFILE, first_party=True)
async def change_password(request: web.Request) -> web.Response:
    caller = current_user(request)
    body = await read_body(request, password_rule(request, "new_password"))
    async with password_attempt(request, str(caller.user_id)):
        await request.app[SERVICES].passwords.change(
            caller, body["current_password"], body["new_password"]
        )
    return no_content()
