"""Accounts: registering, showing and erasing one's own."""

from aiohttp import web
from aiohttp_apispec import docs, request_schema, response_schema
from marshmallow import Schema, fields

from service.api.docs.describe import IDEMPOTENCY_KEY
from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.authentication import current_user, needs
from service.api.http.fields import Moment, RequestSchema, Text, TrimmedText, TypedCode
from service.api.http.idempotency import answer_once
from service.api.http.rate_limits import MAIL, REGISTER, count_request
from service.api.http.requests import Rule, read_body
from service.api.http.responses import answer, no_content, respond
from service.api.password_attempts import password_attempt
from service.domain.emails import parse_email
from service.domain.errors import (
    EmailMalformed,
    EmailTaken,
    HashingQueueFull,
    InvalidCredentials,
    LastAdmin,
    NotAllowed,
    ReferralCodeUnusable,
    SignInTooOld,
    TooMany,
)
from service.domain.scopes import Scope
from service.domain.users import Role
from service.use_cases.users import Registration

EXAMPLE_EMAIL = "anna@example.com"
EXAMPLE_PASSWORD = "a long walk by the river"  # noqa: S105  # an example
OWN_PASSWORD = Text(
    load_default=None,
    metadata={
        "description": "Omit it only for an account without one: then the sign-in must be less "
        "than 10 minutes old."
    },
)
"""With which a user confirms a change of the account."""


class RegisterSchema(RequestSchema):
    email = TrimmedText(required=True)
    password = Text(
        required=True,
        metadata={"description": "8 to 128 characters of any kind, but not a common password."},
    )
    referral_code = TypedCode(
        metadata={"description": "The code of the person who referred the user."}
    )


class ErasureSchema(RequestSchema):
    password = OWN_PASSWORD


class UserSchema(Schema):
    id = fields.UUID(attribute="user_id")
    email = fields.Email(metadata={"example": EXAMPLE_EMAIL})
    email_confirmed = fields.Boolean()
    role = fields.Enum(Role, by_value=True)
    created_at = Moment()
    referrer_id = fields.UUID(
        allow_none=True, metadata={"description": "Null unless registered with a code."}
    )


class ConfirmationSentSchema(Schema):
    status = fields.Constant("confirmation-sent")


@docs(
    tags=["Accounts"],
    summary="Register",
    description="Creates an account, and a referral if a code is given; with an unusable code, "
    "neither. If email addresses must be confirmed first, the response is 202 for new and known "
    "addresses alike, and an email is sent. The account is created when its token comes back, with "
    "the password and the code of that registration, however many others there were.",
    parameters=[IDEMPOTENCY_KEY],
    refuses=(EmailTaken, ReferralCodeUnusable, TooMany, HashingQueueFull),
)
@request_schema(RegisterSchema, example={"email": EXAMPLE_EMAIL, "password": EXAMPLE_PASSWORD})
@response_schema(UserSchema, 201, description="The new account.")
@response_schema(
    ConfirmationSentSchema,
    202,
    description="With `EMAIL_CONFIRMATION=required`: an email has been sent.",
)
async def register(request: web.Request) -> web.Response:
    await count_request(request, REGISTER)
    body = await read_body(request, email_rule("email"), password_rule(request, "password"))
    registration = Registration(**body)
    if not request.app[SETTINGS].confirmation_required:
        return await answer_once(
            request,
            None,
            lambda once: request.app[SERVICES].users.register(registration, once),
            lambda user: answer(request, user, 201),
        )
    await count_request(request, MAIL)  # whether or not the account exists, it sends one
    return await answer_once(
        request,
        None,
        lambda once: request.app[SERVICES].claims.register(registration, once),
        lambda _: answer(request, None, 202),
    )


def email_rule(name: str) -> Rule:
    """Return the rule that the member must be an email address."""
    return name, lambda its: parse_email(its[name])


def password_rule(request: web.Request, name: str) -> Rule:
    """Return the rule that the member must be an acceptable password for its account."""
    users = request.app[SERVICES].users
    return name, lambda its: users.check_password(its[name], its.get("email", ""))


def account_of(email: str) -> str:
    """Return the key under which attempts for an email address are counted."""
    try:
        return parse_email(email).key
    except EmailMalformed:
        return "malformed"  # no account has it: all are counted together


@docs(tags=["Accounts"], summary="Show my account")
@response_schema(UserSchema, 200, description="The caller's account.")
@needs(Scope.PROFILE)
async def show_me(request: web.Request) -> web.Response:
    caller = current_user(request)
    return respond(request, await request.app[SERVICES].users.find(caller.user_id))


@docs(
    tags=["Accounts"],
    summary="Erase my account",
    description="Erases the personal data, ends the sessions and deletes the referral code. "
    "The referrer's count stays. Not for tokens of other applications, nor for the last admin.",
    responses={204: {"description": "The account is erased."}},
    refuses=(NotAllowed, InvalidCredentials, SignInTooOld, LastAdmin, TooMany, HashingQueueFull),
)
@request_schema(ErasureSchema, example={"password": EXAMPLE_PASSWORD})
@needs(Scope.PROFILE, first_party=True)
async def erase_me(request: web.Request) -> web.Response:
    caller = current_user(request)
    body = await read_body(request)
    async with password_attempt(request, str(caller.user_id)):
        await request.app[SERVICES].users.erase(caller, body["password"])
    return no_content()
