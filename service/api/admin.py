"""What admins can do with other people's accounts."""

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, request_schema, response_schema
from marshmallow import Schema, fields

from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_token, needs
from service.api.http.fields import Moment, PageQuery, RequestSchema, TrueOrFalse
from service.api.http.requests import read_body, read_id, read_page
from service.api.http.responses import PageSchema, no_content, respond
from service.api.users import UserSchema
from service.domain.email_verification import Verdict
from service.domain.errors import LastAdmin, NotAllowed, UserNotFound
from service.domain.referrals import ReferralFlag
from service.domain.scopes import Scope


class EmailVerificationSchema(Schema):
    verdict = fields.Enum(Verdict, by_value=True)
    checked_at = Moment()
    source = fields.String(metadata={"example": "hunter"})


class AdminUserSchema(UserSchema):
    disabled = fields.Boolean()
    awaits_confirmation = fields.Boolean(
        metadata={
            "description": "Whether the email address must be confirmed before the next sign-in."
        }
    )
    email_verification = fields.Nested(
        EmailVerificationSchema,
        allow_none=True,
        metadata={"description": "What is known about the email address; null if nothing."},
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


@docs(tags=["Admin"], summary="List the accounts", refuses=(NotAllowed,))
@querystring_schema(UserSearch)
@response_schema(AdminUsersSchema, 200, description="A page of accounts, newest first.")
@needs(Scope.ADMIN)
async def list_users(request: web.Request) -> web.Response:
    limit, behind = read_page(request)
    email = request.query.get("email")
    users = request.app[SERVICES].users
    page = await (
        users.page(limit, behind) if email is None else users.find_by_email(email.strip())
    )
    return respond(request, page)


@docs(tags=["Admin"], summary="Show an account", refuses=(NotAllowed, UserNotFound))
@response_schema(AdminUserSchema, 200, description="The account.")
@needs(Scope.ADMIN)
async def show_user(request: web.Request) -> web.Response:
    return respond(
        request, await request.app[SERVICES].users.find(read_id(request, "user_id", UserNotFound))
    )


@docs(
    tags=["Admin"],
    summary="Disable or enable an account",
    description="Disabling ends all sessions at once, and the referral code is no longer live.",
    refuses=(NotAllowed, UserNotFound, LastAdmin),
)
@request_schema(UserChangeSchema, example={"disabled": True})
@response_schema(AdminUserSchema, 200, description="The account as it is now.")
@needs(Scope.ADMIN)
async def change_user(request: web.Request) -> web.Response:
    body = await read_body(request)
    user = await request.app[SERVICES].users.set_disabled(
        read_id(request, "user_id", UserNotFound), body["disabled"], _reason(request)
    )
    return respond(request, user)


@docs(
    tags=["Admin"],
    summary="Erase an account",
    description="As its owner could: erases the personal data, ends all sessions and deletes the "
    "referral code. The referrer's count stays.",
    responses={204: {"description": "The account is erased."}},
    refuses=(NotAllowed, UserNotFound, LastAdmin),
)
@needs(Scope.ADMIN)
async def erase_user(request: web.Request) -> web.Response:
    await request.app[SERVICES].users.erase_anyone(
        read_id(request, "user_id", UserNotFound), _reason(request)
    )
    return no_content()


def _reason(request: web.Request) -> str:
    """Return who acts, for the log; its request id leads to the rest."""
    return "client" if current_token(request).user_id is None else "admin"
