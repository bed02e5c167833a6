"""What admins may do with other people's accounts."""

from dataclasses import dataclass
from uuid import UUID

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, request_schema, response_schema
from marshmallow import Schema, fields

from service.api.docs.openapi import refuses
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_admin
from service.api.http.requests import (
    Moment,
    PageQuery,
    RequestSchema,
    TrueOrFalse,
    read_body,
    read_id,
    read_page,
)
from service.api.http.responses import PageSchema, no_content, respond
from service.api.users import UserSchema
from service.domain.email_verification import Verdict
from service.domain.errors import LastAdmin, NotAllowed, UserNotFound
from service.domain.referrals import ReferralFlag
from service.security.access_tokens import AccessToken


class EmailVerificationSchema(Schema):
    verdict = fields.Enum(Verdict, by_value=True)
    checked_at = Moment()
    source = fields.String(metadata={"example": "hunter"})


class AdminUserSchema(UserSchema):
    disabled = fields.Boolean()
    awaits_confirmation = fields.Boolean(
        metadata={
            "description": "Whether the email address has to be confirmed before the next sign-in."
        }
    )
    email_verification = fields.Nested(
        EmailVerificationSchema,
        allow_none=True,
        metadata={"description": "What is known about the email address; null if nothing is."},
    )
    referral_flags = fields.List(
        fields.String(metadata={"example": ReferralFlag.SELF_REFERRAL}),
        metadata={"description": "What is suspicious about the account as a referral."},
    )


class AdminUsersSchema(PageSchema):
    items = fields.List(fields.Nested(AdminUserSchema))


class UserSearch(PageQuery):
    email = fields.String(metadata={"description": "Only the account with this email address."})


class UserChangeSchema(RequestSchema):
    disabled = TrueOrFalse(required=True)


@dataclass(frozen=True, slots=True)
class UserChange:
    disabled: bool


ADMIN_USER_SCHEMA = AdminUserSchema()
ADMIN_USERS_SCHEMA = AdminUsersSchema()
USER_CHANGE_SCHEMA = UserChangeSchema()


@docs(tags=["Admin"], summary="List the accounts")
@querystring_schema(UserSearch)
@response_schema(AdminUsersSchema, 200, description="A page of accounts, newest first.")
@refuses(NotAllowed)
async def list_users(request: web.Request) -> web.Response:
    await current_admin(request)
    limit, behind = read_page(request)
    email = request.query.get("email")
    users = request.app[SERVICES].users
    page = await (
        users.page(limit, behind) if email is None else users.find_by_email(email.strip())
    )
    return respond(ADMIN_USERS_SCHEMA, page)


@docs(tags=["Admin"], summary="Show an account")
@response_schema(AdminUserSchema, 200, description="The account.")
@refuses(NotAllowed, UserNotFound)
async def show_user(request: web.Request) -> web.Response:
    await current_admin(request)
    return respond(ADMIN_USER_SCHEMA, await request.app[SERVICES].users.find(_user_id(request)))


@docs(
    tags=["Admin"],
    summary="Disable or enable an account",
    description="Disabling ends the sessions at once, and the code is no longer live.",
)
@request_schema(UserChangeSchema, example={"disabled": True})
@response_schema(AdminUserSchema, 200, description="The account as it is now.")
@refuses(NotAllowed, UserNotFound, LastAdmin)
async def change_user(request: web.Request) -> web.Response:
    caller = await current_admin(request)
    change = await read_body(request, USER_CHANGE_SCHEMA, into=UserChange)
    user = await request.app[SERVICES].users.set_disabled(
        _user_id(request), change.disabled, _reason(caller)
    )
    return respond(ADMIN_USER_SCHEMA, user)


@docs(
    tags=["Admin"],
    summary="Erase an account",
    description="As its owner can: the personal data is erased, the sessions end, and the code is "
    "no longer live. The referrer's count stays.",
    responses={204: {"description": "The account is erased."}},
)
@refuses(NotAllowed, UserNotFound, LastAdmin)
async def erase_user(request: web.Request) -> web.Response:
    caller = await current_admin(request)
    await request.app[SERVICES].users.erase_anyone(_user_id(request), _reason(caller))
    return no_content()


def _user_id(request: web.Request) -> UUID:
    """Return the id in the path; raise UserNotFound where the text there is none."""
    user_id = read_id(request, "user_id")
    if user_id is None:
        raise UserNotFound
    return user_id


def _reason(caller: AccessToken) -> str:
    """Return whose doing it is, for the log, whose request id tells the rest."""
    return "client" if caller.user_id is None else "admin"
