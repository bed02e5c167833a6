"""Referral codes: making, replacing, showing, deleting one's own, and finding another's."""

from collections.abc import Iterable
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final

from aiohttp import web
from aiohttp_apispec import docs, request_schema, response_schema
from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from service.api.answers import WholeResponse, answer, no_content, respond
from service.api.authentication import current_user
from service.api.idempotency import answer_once
from service.api.keys import REFERRAL_CODES
from service.api.openapi import IDEMPOTENCY_KEY, refuses
from service.api.rate_limits import LOOKUP, start_count
from service.api.requests import Moment, RequestSchema, Text, WholeNumber, moment_text, read_body
from service.domain.errors import (
    EmailNotConfirmed,
    InvalidInput,
    LiveReferralCodeExists,
    ReferralCodeNotFound,
    ReferralCodeTaken,
    TooMany,
)
from service.domain.referral_codes import (
    LARGEST_MAX_USES,
    LONGEST_LIFE_DAYS,
    PublicReferralCode,
    ReferralCodeWish,
    normalise_code,
)

_EXPIRIES: Final = ("expires_at", "expires_in_days")


def _check_code(text: str) -> None:
    try:
        normalise_code(text)
    except InvalidInput as error:
        raise ValidationError(error.detail) from error


class ReferralCodeWishSchema(RequestSchema):
    expires_at = Moment(
        metadata={"description": "After now and within 366 days, with its zone (RFC 3339)."}
    )
    expires_in_days = WholeNumber(validate=validate.Range(1, LONGEST_LIFE_DAYS))
    code = Text(
        validate=_check_code,
        metadata={
            "description": "4 to 32 of A-Z, 0-9 and -, compared without case; generated if left "
            "out. A code belongs to its first owner for ever, and so do its look-alikes "
            "(0 and O; 1, I and L).",
            "minLength": 4,
            "maxLength": 32,
            "pattern": "^[A-Za-z0-9-]{4,32}$",
        },
    )
    max_uses = WholeNumber(
        validate=validate.Range(1, LARGEST_MAX_USES),
        metadata={"description": "How many may register with it; any number if left out."},
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _one_expiry(self, data: Any, original: Any, **_: Any) -> None:
        if isinstance(original, dict) and _given(original, _EXPIRIES) != 1:
            raise ValidationError(
                "Give exactly one of expires_at and expires_in_days.", "expires_at"
            )


def _given(body: dict[str, Any], names: Iterable[str]) -> int:
    """Return how many of these members the body has, right or wrong; null is none."""
    return sum(body.get(name) is not None for name in names)


class ReferralCodeSchema(Schema):
    code = fields.String(metadata={"example": "ANNA-2026"})
    created_at = Moment()
    expires_at = Moment()
    max_uses = fields.Integer(allow_none=True)
    uses = fields.Integer()


class PublicReferralCodeSchema(Schema):
    code = fields.String(metadata={"example": "ANNA-2026"})
    expires_at = Moment()
    referrer_id = fields.UUID()


WISH_SCHEMA = ReferralCodeWishSchema()
REFERRAL_CODE_SCHEMA = ReferralCodeSchema()


@docs(
    tags=["Referral codes"],
    summary="Create my referral code",
    description="One code can be live at a time. Its expiry is mandatory: give either "
    "`expires_at` or `expires_in_days`.",
    parameters=[IDEMPOTENCY_KEY],
)
@request_schema(ReferralCodeWishSchema, example={"expires_in_days": 30})
@response_schema(ReferralCodeSchema, 201, description="The new code.")
@refuses(LiveReferralCodeExists, ReferralCodeTaken, EmailNotConfirmed)
async def create_referral_code(request: web.Request) -> web.Response:
    caller = await current_user(request)
    wish = await read_body(request, WISH_SCHEMA, into=ReferralCodeWish)
    return await answer_once(
        request,
        str(caller.user_id),
        lambda once: request.app[REFERRAL_CODES].create(caller.user_id, wish, once),
        lambda code: answer(REFERRAL_CODE_SCHEMA, code, 201),
    )


@docs(
    tags=["Referral codes"],
    summary="Create or replace my referral code",
    description="A live code dies at once.",
)
@request_schema(ReferralCodeWishSchema, example={"expires_in_days": 90, "code": "ANNA-2026"})
@response_schema(ReferralCodeSchema, 200, description="The code that replaced a live one.")
@response_schema(ReferralCodeSchema, 201, description="The code, where none was live.")
@refuses(ReferralCodeTaken, EmailNotConfirmed)
async def replace_referral_code(request: web.Request) -> web.Response:
    caller = await current_user(request)
    wish = await read_body(request, WISH_SCHEMA, into=ReferralCodeWish)
    code, replaced = await request.app[REFERRAL_CODES].replace(caller.user_id, wish)
    return respond(REFERRAL_CODE_SCHEMA, code, 200 if replaced else 201)


@docs(tags=["Referral codes"], summary="Show my referral code")
@response_schema(ReferralCodeSchema, 200, description="The caller's live code.")
@refuses(ReferralCodeNotFound)
async def show_referral_code(request: web.Request) -> web.Response:
    caller = await current_user(request)
    return respond(REFERRAL_CODE_SCHEMA, await request.app[REFERRAL_CODES].find(caller.user_id))


@docs(
    tags=["Referral codes"],
    summary="Delete my referral code",
    responses={204: {"description": "The code is no longer live."}},
)
@refuses(ReferralCodeNotFound)
async def delete_referral_code(request: web.Request) -> web.Response:
    caller = await current_user(request)
    await request.app[REFERRAL_CODES].delete(caller.user_id)
    return no_content()


@docs(
    tags=["Referral codes"],
    summary="Find a referrer's code by e-mail",
    description="For anyone. An unknown e-mail and one without a live code get the same answer.",
)
@response_schema(PublicReferralCodeSchema, 200, description="The referrer's live code.")
@refuses(ReferralCodeNotFound, TooMany)
async def find_referral_code(request: web.Request) -> web.Response:
    admission = start_count(request, LOOKUP)
    try:
        body = await request.app[REFERRAL_CODES].find_by_email(
            request.match_info["email"], write_public, admission.check
        )
    finally:
        await admission.check()
    return WholeResponse(body)


def write_public(code: PublicReferralCode) -> bytes:
    """Return the code as PublicReferralCodeSchema writes it, which takes three times as long."""
    return (
        f'{{"code":{_quoted(code.code)},"expires_at":"{moment_text(code.expires_at)}",'
        f'"referrer_id":"{code.referrer_id!s}"}}'
    ).encode()
