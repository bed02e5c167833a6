"""Referral codes: creating, changing, showing, deleting one's own, and finding another's."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, request_schema, response_schema
from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from service.api.docs.describe import IDEMPOTENCY_KEY, in_path
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_user, is_of_client, needs
from service.api.http.fields import (
    BETWEEN,
    ChangeSchema,
    Moment,
    PageQuery,
    RequestSchema,
    Text,
    WholeNumber,
    by_rule,
)
from service.api.http.front import API
from service.api.http.idempotency import answer_once
from service.api.http.prebuilt import PrebuiltResponse
from service.api.http.rate_limits import LOOKUP, count_request
from service.api.http.requests import Rule, public_path, read_body, read_page
from service.api.http.responses import PageSchema, answer, no_content, respond, to_json
from service.api.users import EXAMPLE_EMAIL
from service.domain.errors import (
    EmailNotConfirmed,
    LiveReferralCodeExists,
    ReferralCodeNotFound,
    ReferralCodeTaken,
    TooMany,
)
from service.domain.referral_codes import (
    LARGEST_MAX_USES,
    LONGEST_LIFE_DAYS,
    NewReferralCode,
    PublicReferralCode,
    ReferralCodeChange,
    ReferralCodeState,
    check_expiry,
    normalise_code,
)
from service.domain.scopes import Scope

_EXPIRIES: Final = ("expires_at", "expires_in_days")


class ExpirySchema(RequestSchema):
    expires_at = Moment(
        metadata={"description": "At most 366 days from now, with an offset (RFC 3339)."}
    )
    expires_in_days = WholeNumber(validate=validate.Range(1, LONGEST_LIFE_DAYS, error=BETWEEN))


class ReferralCodeWishSchema(ExpirySchema):
    code = Text(
        validate=by_rule(normalise_code),
        metadata={
            "description": "4 to 32 characters: A-Z, 0-9 and hyphens, case-insensitive; generated "
            "if omitted. A code belongs to its first owner forever, and so do its look-alikes (0 "
            "and O; 1, I and L).",
            "minLength": 4,
            "maxLength": 32,
            "pattern": "^[A-Za-z0-9-]{4,32}$",
        },
    )
    max_uses = WholeNumber(
        validate=validate.Range(1, LARGEST_MAX_USES, error=BETWEEN),
        metadata={"description": "How many users can register with it; unlimited if omitted."},
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _one_expiry(self, data: Any, original: Any, **_: Any) -> None:
        if isinstance(original, dict) and _given(original, _EXPIRIES) != 1:
            raise ValidationError(
                "Give exactly one of expires_at and expires_in_days.", "expires_at"
            )


class ReferralCodeChangeSchema(ExpirySchema, ChangeSchema):
    max_uses = WholeNumber(
        validate=validate.Range(1, LARGEST_MAX_USES, error=BETWEEN),
        metadata={
            "description": "How many users can register with it in all. Not below `uses`; "
            "once that many have, the code is used up."
        },
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _one_expiry(self, data: Any, original: Any, **_: Any) -> None:
        if isinstance(original, dict) and _given(original, _EXPIRIES) > 1:
            raise ValidationError("Give only one of expires_at and expires_in_days.", "expires_at")


def _given(body: dict[str, Any], names: Iterable[str]) -> int:
    """Return how many of these members the body has, valid or not; null does not count."""
    return sum(body.get(name) is not None for name in names)


class ReferralCodeSchema(Schema):
    code = fields.String(metadata={"example": "ANNA-2026"})
    created_at = Moment()
    expires_at = Moment()
    max_uses = fields.Integer(allow_none=True)
    uses = fields.Integer()


class OwnReferralCodeSchema(ReferralCodeSchema):
    state = fields.Enum(
        ReferralCodeState,
        by_value=True,
        metadata={
            "description": "`live`, or why the code ended. While the user is blocked or the "
            "programme has ended, a live code cannot be found or used."
        },
    )
    ended_at = Moment(allow_none=True, metadata={"description": "Null while it is live."})


class OwnReferralCodesSchema(PageSchema):
    items = fields.List(fields.Nested(OwnReferralCodeSchema))


class LiveReferralCodeSchema(Schema):
    code = fields.String(metadata={"example": "ANNA-2026"})
    expires_at = Moment()


class CheckedReferralCodeSchema(Schema):
    code = fields.String(attribute="code.code", metadata={"example": "ANNA-2026"})
    expires_at = Moment(attribute="code.expires_at")
    programme = fields.String(
        attribute="owner.programme",
        metadata={
            "description": "The programme's key. This and the following members are for clients "
            "only."
        },
    )
    participant_id = fields.UUID(attribute="owner.participant.participant_id")
    external_id = fields.String(attribute="owner.participant.external_id", allow_none=True)
    public_name = fields.String(attribute="owner.participant.public_name", allow_none=True)
    optional = frozenset({"programme", "participant_id", "external_id", "public_name"})


class PublicReferralCodeSchema(LiveReferralCodeSchema):
    referrer_id = fields.UUID()


def expiry_rule(request: web.Request) -> Rule:
    now = request.app[SERVICES].clock()
    return "expires_at", lambda its: check_expiry(its["expires_at"], now)


def _located(request: web.Request, response: web.Response) -> web.Response:
    """Add the `Location` to a response with a new code."""
    if response.status == HTTPStatus.CREATED:
        response.headers["Location"] = public_path(request, f"{API}/referral-code")
    return response


@docs(
    tags=["Referral codes"],
    summary="Create my referral code",
    description="Only one code can be live at a time. Its expiry is required: give either "
    "`expires_at` or `expires_in_days`.",
    parameters=[IDEMPOTENCY_KEY],
    refuses=(LiveReferralCodeExists, ReferralCodeTaken, EmailNotConfirmed),
    locates=(201,),
)
@request_schema(ReferralCodeWishSchema, example={"expires_in_days": 30})
@response_schema(ReferralCodeSchema, 201, description="The new code.")
@needs(Scope.CODES_WRITE)
async def create_referral_code(request: web.Request) -> web.Response:
    caller = current_user(request)
    wish = NewReferralCode(**await read_body(request, expiry_rule(request)))
    response = await answer_once(
        request,
        caller.user_id,
        lambda once: request.app[SERVICES].referral_codes.create(caller.user_id, wish, once),
        lambda code: answer(request, code, 201),
    )
    return _located(request, response)


@docs(
    tags=["Referral codes"],
    summary="Create or replace my referral code",
    description="A live code ends immediately.",
    refuses=(ReferralCodeTaken, EmailNotConfirmed),
    locates=(201,),
)
@request_schema(ReferralCodeWishSchema, example={"expires_in_days": 90, "code": "ANNA-2026"})
@response_schema(ReferralCodeSchema, 200, description="The code that replaced a live one.")
@response_schema(ReferralCodeSchema, 201, description="The code, if none was live.")
@needs(Scope.CODES_WRITE)
async def replace_referral_code(request: web.Request) -> web.Response:
    caller = current_user(request)
    wish = NewReferralCode(**await read_body(request, expiry_rule(request)))
    code, replaced = await request.app[SERVICES].referral_codes.replace(caller.user_id, wish)
    return _located(request, respond(request, code, 200 if replaced else 201))


@docs(
    tags=["Referral codes"],
    summary="Change my referral code",
    description="Gives the live code another expiry or limit, and keeps its uses. Omitted members "
    "stay as they are. A limit that the uses have reached ends the code.",
    refuses=(ReferralCodeNotFound, EmailNotConfirmed),
)
@request_schema(ReferralCodeChangeSchema, example={"expires_in_days": 90})
@response_schema(ReferralCodeSchema, 200, description="The changed code.")
@needs(Scope.CODES_WRITE)
async def change_referral_code(request: web.Request) -> web.Response:
    caller = current_user(request)
    body = await read_body(request, expiry_rule(request))
    code = await request.app[SERVICES].referral_codes.change(
        caller.user_id, ReferralCodeChange(**body)
    )
    return respond(request, code)


@docs(
    tags=["Referral codes"],
    summary="Show my referral code",
    description="Shows the live code. There is none while the user is blocked or the programme has "
    "ended.",
    refuses=(ReferralCodeNotFound,),
)
@response_schema(ReferralCodeSchema, 200, description="The caller's live code.")
@needs(Scope.CODES_READ)
async def show_referral_code(request: web.Request) -> web.Response:
    caller = current_user(request)
    return respond(request, await request.app[SERVICES].referral_codes.find(caller.user_id))


@docs(
    tags=["Referral codes"],
    summary="Delete my referral code",
    responses={204: {"description": "The code is no longer live."}},
    refuses=(ReferralCodeNotFound,),
)
@needs(Scope.CODES_WRITE)
async def delete_referral_code(request: web.Request) -> web.Response:
    caller = current_user(request)
    await request.app[SERVICES].referral_codes.delete(caller.user_id)
    return no_content()


@docs(
    tags=["Referral codes"],
    summary="List my referral codes",
    description="Newest first, including those that have ended. A code that was never used is "
    "dropped about 90 days after it ended.",
)
@querystring_schema(PageQuery)
@response_schema(OwnReferralCodesSchema, 200, description="A page of the caller's codes.")
@needs(Scope.CODES_READ)
async def list_referral_codes(request: web.Request) -> web.Response:
    caller = current_user(request)
    page = await request.app[SERVICES].referral_codes.page(caller.user_id, *read_page(request))
    return respond(request, page)


@docs(
    tags=["Referral codes"],
    summary="Check a referral code",
    parameters=[in_path("code", "The code as it was typed.", "ANNA-2026")],
    description="For anyone, for example before registering with the code. Case does not matter, "
    "nor do look-alikes (0 O, 1 I L). A client with the scope `events:write` also sees whose code "
    "it is.",
    refuses=(ReferralCodeNotFound, TooMany),
)
@response_schema(CheckedReferralCodeSchema, 200, description="The live code.")
async def check_referral_code(request: web.Request) -> web.Response:
    of_client = "Authorization" in request.headers and await is_of_client(
        request, Scope.EVENTS_WRITE
    )
    if not of_client:
        await count_request(request, LOOKUP)
    services = request.app[SERVICES]
    code = await services.referral_codes.find_by_code(request.match_info["code"])
    owner = await services.participants.find_owner(code) if of_client else None
    return respond(request, {"code": code, "owner": owner})


@docs(
    tags=["Referral codes"],
    summary="Find a referrer's code by email address",
    parameters=[in_path("email", "The referrer's email address.", EXAMPLE_EMAIL)],
    description="For anyone. An unknown email address and one without a live code get the same "
    "response.",
    refuses=(ReferralCodeNotFound, TooMany),
)
@response_schema(PublicReferralCodeSchema, 200, description="The referrer's live code.")
async def find_referral_code(request: web.Request) -> web.Response:
    codes = request.app[SERVICES].referral_codes
    lookup = codes.look_up(request.match_info["email"])
    await count_request(request, LOOKUP)
    return PrebuiltResponse(await codes.find_by_email(lookup, write_public))


def write_public(code: PublicReferralCode) -> bytes:
    """Return the code as PublicReferralCodeSchema writes it, in a fifth of the time.

    While Redis is away each look-up is written.
    """
    return to_json(
        {"code": code.code, "expires_at": code.expires_at, "referrer_id": str(code.referrer_id)}
    )
