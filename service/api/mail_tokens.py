"""What goes through the owner's mailbox: confirming or changing an e-mail, a forgotten password."""

from dataclasses import dataclass

from aiohttp import web
from aiohttp_apispec import docs, request_schema, response_schema
from marshmallow import Schema, fields

from service.api.docs.openapi import refuses
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_first_party_user
from service.api.http.rate_limits import MAIL, count_request
from service.api.http.requests import EmailText, RequestSchema, Text, TokenText, read_body
from service.api.http.responses import no_content, respond
from service.api.password_attempts import forget_failures, password_attempt
from service.api.users import EXAMPLE_EMAIL, EXAMPLE_PASSWORD, ErasureSchema, email_rule
from service.domain.errors import (
    HashingQueueFull,
    InvalidCredentials,
    MailUnavailable,
    NotAllowed,
    PasswordUnacceptable,
    SignInTooOld,
    TokenUnusable,
    TooMany,
)

EXAMPLE_TOKEN = "qD3mKn0c2xk1…"  # noqa: S105  # an example


class EmailSchema(RequestSchema):
    email = EmailText(required=True)


class TokenSchema(RequestSchema):
    token = TokenText(required=True, metadata={"description": "As it is in the mail."})


class PasswordResetSchema(TokenSchema):
    new_password = Text(required=True)


class EmailChangeSchema(ErasureSchema):
    new_email = EmailText(required=True)


class AcceptedSchema(Schema):
    status = fields.Constant("accepted")


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
ACCEPTED_SCHEMA = AcceptedSchema()


@docs(
    tags=["Email"],
    summary="Send me a token to set a new password",
    description="If there is an account, its owner gets a mail. The token is good for 10 minutes, "
    "once.",
)
@request_schema(EmailSchema, example={"email": EXAMPLE_EMAIL})
@response_schema(AcceptedSchema, 202, description="Whether or not there is such an account.")
@refuses(TooMany)
async def forgot_password(request: web.Request) -> web.Response:
    asked = await read_body(request, EMAIL_SCHEMA, ForEmail, email_rule("email"))
    await count_request(request, MAIL)
    await request.app[SERVICES].mail_tokens.forgot_password(asked.email)
    return respond(ACCEPTED_SCHEMA, None, 202)


@docs(
    tags=["Email"],
    summary="Set a new password",
    description="Ends all sessions, confirms the email address, and notifies the owner by mail.",
    responses={204: {"description": "The new password holds."}},
)
@request_schema(
    PasswordResetSchema,
    example={"token": EXAMPLE_TOKEN, "new_password": "a longer walk by the sea"},
)
@refuses(TokenUnusable, PasswordUnacceptable, HashingQueueFull)
async def reset_password(request: web.Request) -> web.Response:
    users = request.app[SERVICES].users
    reset = await read_body(
        request,
        PASSWORD_RESET_SCHEMA,
        PasswordReset,
        ("new_password", lambda its: users.check_password(its["new_password"])),
    )
    account = await request.app[SERVICES].passwords.reset(reset.token, reset.new_password)
    await forget_failures(request, account)
    return no_content()


@docs(
    tags=["Email"],
    summary="Confirm an email address",
    description="With the token that was mailed to it, after registering or for a change. The same "
    "token again gets the same answer, as long as the account has this email address.",
    responses={204: {"description": "The email address is confirmed, and is the account's."}},
)
@request_schema(TokenSchema, example={"token": EXAMPLE_TOKEN})
@refuses(TokenUnusable)
async def confirm_email(request: web.Request) -> web.Response:
    confirmation = await read_body(request, TOKEN_SCHEMA, into=Confirmation)
    await request.app[SERVICES].mail_tokens.confirm(confirmation.token)
    return no_content()


@docs(
    tags=["Email"],
    summary="Send me the confirmation once more",
    description="If the email address waits for a confirmation, a mail with a new token is sent "
    "to it, for each of the newest registrations if there were several.",
)
@request_schema(EmailSchema, example={"email": EXAMPLE_EMAIL})
@response_schema(AcceptedSchema, 202, description="Whether or not there is such an account.")
@refuses(TooMany)
async def resend_confirmation(request: web.Request) -> web.Response:
    asked = await read_body(request, EMAIL_SCHEMA, ForEmail, email_rule("email"))
    await count_request(request, MAIL)
    await request.app[SERVICES].mail_tokens.resend_confirmation(asked.email)
    return respond(ACCEPTED_SCHEMA, None, 202)


@docs(
    tags=["Email"],
    summary="Change my email address",
    description="The new address gets a mail with a token, and becomes the account's once it "
    "is confirmed; the old address is then notified. Not for tokens of other applications.",
)
@request_schema(
    EmailChangeSchema,
    example={"new_email": "anna@example.org", "password": EXAMPLE_PASSWORD},
)
@response_schema(AcceptedSchema, 202, description="The new email address gets a mail.")
@refuses(NotAllowed, InvalidCredentials, SignInTooOld, TooMany, HashingQueueFull, MailUnavailable)
async def change_email(request: web.Request) -> web.Response:
    caller = await current_first_party_user(request)
    change = await read_body(request, EMAIL_CHANGE_SCHEMA, EmailChange, email_rule("new_email"))
    async with password_attempt(request, str(caller.user_id)):
        await count_request(request, MAIL)
        await request.app[SERVICES].mail_tokens.change_email(
            caller, change.new_email, change.password
        )
    return respond(ACCEPTED_SCHEMA, None, 202)
