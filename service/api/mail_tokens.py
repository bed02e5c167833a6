"""What goes through the owner's mailbox: confirming or changing an e-mail, a forgotten password."""

from dataclasses import dataclass

from aiohttp import web
from aiohttp_apispec import docs, request_schema

from service.api.answers import no_content, to_json
from service.api.authentication import current_user
from service.api.keys import MAIL_TOKENS
from service.api.openapi import refuses
from service.api.rate_limits import LOGIN, MAIL, count_request
from service.api.requests import RequestSchema, Text, read_body
from service.api.users import EXAMPLE_EMAIL, EXAMPLE_PASSWORD, ErasureSchema, account_of
from service.domain.errors import (
    HashingQueueFull,
    InvalidCredentials,
    MailUnavailable,
    PasswordUnacceptable,
    SignInTooOld,
    TokenUnusable,
    TooMany,
)

EXAMPLE_TOKEN = "qD3mKn0c2xk1…"  # noqa: S105  # an example


class EmailSchema(RequestSchema):
    email = Text(required=True)


class TokenSchema(RequestSchema):
    token = Text(required=True, metadata={"description": "As it is in the mail."})


class PasswordResetSchema(TokenSchema):
    new_password = Text(required=True)


class EmailChangeSchema(ErasureSchema):
    new_email = Text(required=True)


@dataclass(frozen=True, slots=True)
class ForEmail:
    email: str


@dataclass(frozen=True, slots=True)
class Confirmation:
    token: str


@dataclass(frozen=True, slots=True)
class PasswordReset:
    token: str
    new_password: str


@dataclass(frozen=True, slots=True)
class EmailChange:
    new_email: str
    password: str | None


EMAIL_SCHEMA = EmailSchema()
TOKEN_SCHEMA = TokenSchema()
PASSWORD_RESET_SCHEMA = PasswordResetSchema()
EMAIL_CHANGE_SCHEMA = EmailChangeSchema()
ACCEPTED = to_json({"status": "accepted"})
_ANSWERED_ALIKE = {
    202: {
        "description": "Whether or not there is such an account.",
        "content": {
            "application/json": {"schema": {"const": {"status": "accepted"}, "type": "object"}}
        },
    }
}


@docs(
    tags=["E-mail"],
    summary="Send me a token to set a new password",
    description="If there is an account, its owner gets a mail. The token is good for 10 minutes, "
    "once.",
    responses=_ANSWERED_ALIKE,
)
@request_schema(EmailSchema, example={"email": EXAMPLE_EMAIL})
@refuses(TooMany)
async def forgot_password(request: web.Request) -> web.Response:
    asked = await read_body(request, EMAIL_SCHEMA, into=ForEmail)
    await count_request(request, MAIL, account=account_of(asked.email))
    await request.app[MAIL_TOKENS].forgot_password(asked.email)
    return _accepted()


@docs(
    tags=["E-mail"],
    summary="Set a new password",
    description="Ends all sessions, confirms the e-mail, and tells the owner by mail.",
    responses={204: {"description": "The new password holds."}},
)
@request_schema(
    PasswordResetSchema,
    example={"token": EXAMPLE_TOKEN, "new_password": "a longer walk by the sea"},
)
@refuses(TokenUnusable, PasswordUnacceptable, HashingQueueFull)
async def reset_password(request: web.Request) -> web.Response:
    reset = await read_body(request, PASSWORD_RESET_SCHEMA, into=PasswordReset)
    await request.app[MAIL_TOKENS].reset_password(reset.token, reset.new_password)
    return no_content()


@docs(
    tags=["E-mail"],
    summary="Confirm an e-mail",
    description="With the token that was mailed to it, after registering or for a change.",
    responses={204: {"description": "The e-mail is confirmed, and is the account's."}},
)
@request_schema(TokenSchema, example={"token": EXAMPLE_TOKEN})
@refuses(TokenUnusable)
async def confirm_email(request: web.Request) -> web.Response:
    confirmation = await read_body(request, TOKEN_SCHEMA, into=Confirmation)
    await request.app[MAIL_TOKENS].confirm(confirmation.token)
    return no_content()


@docs(
    tags=["E-mail"],
    summary="Send me the confirmation once more",
    description="If there is an account whose e-mail is not confirmed, its owner gets a mail.",
    responses=_ANSWERED_ALIKE,
)
@request_schema(EmailSchema, example={"email": EXAMPLE_EMAIL})
@refuses(TooMany)
async def resend_confirmation(request: web.Request) -> web.Response:
    asked = await read_body(request, EMAIL_SCHEMA, into=ForEmail)
    await count_request(request, MAIL, account=account_of(asked.email))
    await request.app[MAIL_TOKENS].resend_confirmation(asked.email)
    return _accepted()


@docs(
    tags=["E-mail"],
    summary="Change my e-mail",
    description="The new e-mail gets a mail with a token, and is the account's once it is "
    "confirmed; then the old one is told.",
    responses={202: {**_ANSWERED_ALIKE[202], "description": "The new e-mail gets a mail."}},
)
@request_schema(
    EmailChangeSchema,
    example={"new_email": "anna@example.org", "password": EXAMPLE_PASSWORD},
)
@refuses(InvalidCredentials, SignInTooOld, TooMany, HashingQueueFull, MailUnavailable)
async def change_email(request: web.Request) -> web.Response:
    caller = await current_user(request)
    change = await read_body(request, EMAIL_CHANGE_SCHEMA, into=EmailChange)
    await count_request(request, LOGIN, account=str(caller.user_id))
    await count_request(request, MAIL, account=account_of(change.new_email))
    await request.app[MAIL_TOKENS].change_email(caller, change.new_email, change.password)
    return _accepted()


def _accepted() -> web.Response:
    return web.Response(status=202, body=ACCEPTED, content_type="application/json")
