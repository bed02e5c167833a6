"""Confirming or changing an email address, and resetting a password, with emailed tokens."""

from aiohttp import web
from aiohttp_apispec import docs, request_schema, response_schema
from marshmallow import Schema, fields

from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_user, needs
from service.api.http.fields import RequestSchema, Text, TrimmedText
from service.api.http.rate_limits import MAIL, count_request
from service.api.http.requests import read_body
from service.api.http.responses import no_content, respond
from service.api.password_attempts import forget_failures, password_attempt
from service.api.users import (
    EXAMPLE_EMAIL,
    EXAMPLE_PASSWORD,
    OWN_PASSWORD,
    email_rule,
    password_rule,
)
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
from service.domain.scopes import Scope

EXAMPLE_TOKEN = "qD3mKn0c2xk1…"  # noqa: S105  # an example


class EmailSchema(RequestSchema):
    email = TrimmedText(required=True)


class TokenSchema(RequestSchema):
    token = TrimmedText(required=True, metadata={"description": "The token from the email."})


class PasswordResetSchema(TokenSchema):
    new_password = Text(required=True)


class EmailChangeSchema(RequestSchema):
    password = OWN_PASSWORD
    new_email = TrimmedText(required=True)


class AcceptedSchema(Schema):
    status = fields.Constant("accepted")


@docs(
    tags=["Email"],
    summary="Send me a token to set a new password",
    description="If the account exists, its owner gets an email. The token works once, within 10 "
    "minutes.",
    refuses=(TooMany,),
)
@request_schema(EmailSchema, example={"email": EXAMPLE_EMAIL})
@response_schema(
    AcceptedSchema, 202, description="The same response whether or not the account exists."
)
async def forgot_password(request: web.Request) -> web.Response:
    body = await read_body(request, email_rule("email"))
    await count_request(request, MAIL)
    await request.app[SERVICES].mail_tokens.forgot_password(body["email"])
    return respond(request, None, 202)


@docs(
    tags=["Email"],
    summary="Set a new password",
    description="Ends all sessions, confirms the email address, and notifies the owner by email.",
    responses={204: {"description": "The new password is set."}},
    refuses=(TokenUnusable, PasswordUnacceptable(field="new_password"), HashingQueueFull),
)
@request_schema(
    PasswordResetSchema,
    example={"token": EXAMPLE_TOKEN, "new_password": "a longer walk by the sea"},
)
async def reset_password(request: web.Request) -> web.Response:
    body = await read_body(request, password_rule(request, "new_password"))
    account = await request.app[SERVICES].passwords.reset(body["token"], body["new_password"])
    await forget_failures(request, account)
    return no_content()


@docs(
    tags=["Email"],
    summary="Confirm an email address",
    description="Confirms it with the token that was sent to it, after registering or for a "
    "change. The same token gets the same response again for as long as the account has this email "
    "address.",
    responses={204: {"description": "The email address is confirmed, and is the account's."}},
    refuses=(TokenUnusable,),
)
@request_schema(TokenSchema, example={"token": EXAMPLE_TOKEN})
async def confirm_email(request: web.Request) -> web.Response:
    body = await read_body(request)
    await request.app[SERVICES].mail_tokens.confirm(body["token"])
    return no_content()


@docs(
    tags=["Email"],
    summary="Send me the confirmation again",
    description="If the email address is waiting for a confirmation, it gets an email with a new "
    "token, one for each of the latest registrations if there were several.",
    refuses=(TooMany,),
)
@request_schema(EmailSchema, example={"email": EXAMPLE_EMAIL})
@response_schema(
    AcceptedSchema, 202, description="The same response whether or not the account exists."
)
async def resend_confirmation(request: web.Request) -> web.Response:
    body = await read_body(request, email_rule("email"))
    await count_request(request, MAIL)
    await request.app[SERVICES].mail_tokens.resend_confirmation(body["email"])
    return respond(request, None, 202)


@docs(
    tags=["Email"],
    summary="Change my email address",
    description="The new address gets an email with a token, and becomes the account's once it is "
    "confirmed; the old address is then notified. Not for tokens of other applications.",
    refuses=(
        NotAllowed,
        InvalidCredentials,
        SignInTooOld,
        TooMany,
        HashingQueueFull,
        MailUnavailable,
    ),
)
@request_schema(
    EmailChangeSchema, example={"new_email": "anna@example.org", "password": EXAMPLE_PASSWORD}
)
@response_schema(AcceptedSchema, 202, description="The new address gets an email.")
@needs(Scope.PROFILE, first_party=True)
async def change_email(request: web.Request) -> web.Response:
    caller = current_user(request)
    body = await read_body(request, email_rule("new_email"))
    async with password_attempt(request, str(caller.user_id)):
        await count_request(request, MAIL)
        await request.app[SERVICES].mail_tokens.change_email(
            caller, body["new_email"], body["password"]
        )
    return respond(request, None, 202)
