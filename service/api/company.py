"""What the calls of companies have in common: ids, people, times, and what is said of a person."""

import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final, TypeVar

from aiohttp import web
from marshmallow import Schema, ValidationError, fields, validates_schema

from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.authentication import current_client, current_token
from service.api.http.fields import MatchingText, Moment, RequestSchema, Text, TrimmedText
from service.api.http.front import API
from service.api.http.idempotency import answer_once
from service.api.http.requests import Rule, public_path
from service.domain.emails import parse_email
from service.domain.events import check_moment
from service.domain.programmes import DEFAULT_PROGRAMME
from service.domain.referrals import ReferralFlag, ReferralReason, ReferralState, Review
from service.repositories.idempotency_keys import Answer
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.participants import Who

T = TypeVar("T")
LONGEST_ID: Final = 128


class CompanyId(MatchingText):
    """A company's own id of something."""

    def __init__(self, **options: Any) -> None:
        error = f"An id must have 1 to {LONGEST_ID} printable ASCII characters and no spaces."
        super().__init__(f"[!-~]{{1,{LONGEST_ID}}}", error, **options)


class ParticipantId(fields.UUID):
    """An id of ours."""

    default_error_messages = {  # noqa: RUF012  # marshmallow declares it so
        "invalid_uuid": "This is not an id of this service, which is a UUID."
    }


class ProgrammeKey(Text):
    def __init__(self, **options: Any) -> None:
        metadata = {"description": "The programme's key; `default` if omitted."}
        super().__init__(metadata=metadata, **options)


class WhoSchema(RequestSchema):
    """A participant, named by exactly one of two ids."""

    external_id = CompanyId(
        metadata={"description": "Your own id for the participant.", "example": "u-2"}
    )
    participant_id = ParticipantId(
        metadata={
            "description": "This service's id for the participant. Send either this or "
            "`external_id`."
        }
    )
    programme = ProgrammeKey()

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _check_who(self, data: Any, original: Any, **_: Any) -> None:
        if isinstance(original, dict):
            given = [original.get(name) is not None for name in ("external_id", "participant_id")]
            if sum(given) != 1:
                raise ValidationError(
                    "Give exactly one of external_id and participant_id.", "external_id"
                )


def _check_ip(ip: str) -> None:
    try:
        ip_address(ip)
    except ValueError as error:
        raise ValidationError("This is not an IPv4 or IPv6 address.") from error


class SignalsSchema(RequestSchema):
    """What a company knows of a person; only keyed hashes of it are kept."""

    email = TrimmedText(
        metadata={
            "description": "The user's email address, used to recognize the person. Only a keyed "
            "hash is stored.",
            "example": "a@b.example",
        }
    )
    ip = Text(
        validate=_check_ip,
        metadata={
            "description": "The user's IP address, not your server's. Only a keyed hash is stored."
        },
    )
    device_id = CompanyId(
        metadata={"description": "Your own id for the user's device. Only a keyed hash is stored."}
    )


class EventSchema(Schema):
    id = fields.String(
        attribute="external_id",
        metadata={"description": "Your own id for the event.", "example": "order-1001"},
    )
    type = fields.String(metadata={"example": "purchase"})
    participant_id = fields.UUID()
    amount = fields.Integer(
        allow_none=True, metadata={"description": "In minor units; null if none was reported."}
    )
    unit = fields.String(allow_none=True)
    refunds = fields.String(
        allow_none=True, metadata={"description": "The id of the refunded event; null otherwise."}
    )
    occurred_at = Moment(metadata={"description": "When the event happened."})
    received_at = Moment(metadata={"description": "When the event was first reported."})


class ProgrammeReferralSchema(Schema):
    id = fields.UUID(
        attribute="referral_id", metadata={"description": "The referee's `participant_id`."}
    )
    programme = fields.String(metadata={"example": "default"})
    version = fields.Integer(
        metadata={
            "description": "The version of the programme's rules that applies to the referral."
        }
    )
    referrer_id = fields.UUID(metadata={"description": "The referrer's `participant_id`."})
    code = fields.String(
        metadata={"description": "The code that the referee used.", "example": "7GXKQ2MPRT"}
    )
    state = fields.Enum(
        ReferralState,
        by_value=True,
        metadata={
            "description": "`pending`: it has not qualified yet. `qualified`: it has qualified. "
            "`rewarded`: it has qualified, and one of its rewards, other than those for signing "
            "up, has become available. `reversed`: it had qualified, but no longer does. "
            "`rejected`: it does not count."
        },
    )
    # No enum: a client generated today must accept reasons added tomorrow.
    reason = fields.String(
        metadata={
            "description": "Why the referral is in this state; more reasons may be added.",
            "example": ReferralReason.QUALIFIED,
        }
    )
    review = fields.Enum(
        Review,
        by_value=True,
        metadata={
            "description": "Whether the referral needs a review, or how one ended. While it is "
            "`open`, the referral's rewards are held."
        },
    )
    flags = fields.List(
        fields.String(metadata={"example": ReferralFlag.SELF_REFERRAL}),
        metadata={"description": "The fraud rules that the sign-up matched; more may be added."},
    )
    sequence = fields.Integer(
        metadata={
            "description": "Increases with each decision: of two responses, the one with the "
            "higher number is newer."
        }
    )
    registered_at = Moment()
    window_ends_at = Moment(
        allow_none=True,
        metadata={
            "description": "The time by which the referral must qualify; null if there is no limit."
        },
    )


async def answer_client_once(
    request: web.Request,
    work: Callable[[AnswerOnce[T]], Awaitable[T]],
    render: Callable[[T], Answer],
) -> web.Response:
    """Like `answer_once`; the key belongs to the client, or to the admin who calls like one."""
    owner = current_token(request).user_id or current_client(request)
    return await answer_once(request, owner, work, render)


def locate(
    request: web.Request, response: web.Response, collection: str, member: str
) -> web.Response:
    """Add the `Location` of what was created, which `member` of the response names."""
    if response.status == HTTPStatus.CREATED:
        created = json.loads(response.text or "")[member]
        response.headers["Location"] = public_path(request, f"{API}/{collection}/{created}")
    return response


def who_of(members: dict[str, Any]) -> Who:
    """Take the participant out of a body's members, and return it."""
    return Who(
        external_id=members.pop("external_id", None),
        participant_id=members.pop("participant_id", None),
        programme=members.pop("programme", None),
    )


def with_parsed_email(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members with the email address parsed; raise EmailMalformed."""
    email = members.get("email")
    return {**members, "email": None if email is None else parse_email(email)}


def moment_rule(request: web.Request, name: str) -> Rule:
    """Return the rule that the member is a time that a company may report."""
    now = request.app[SERVICES].clock()
    return name, lambda its: check_moment(its[name], now, name)


def fingerprint_of(request: web.Request, members: Mapping[str, Any]) -> bytes:
    """Return what tells a repeated body from another one with the same id."""
    usual = {name: value for name, value in members.items() if name != "programme"}
    if (programme := members.get("programme", DEFAULT_PROGRAMME)) != DEFAULT_PROGRAMME:
        usual["programme"] = programme
    text = json.dumps(usual, sort_keys=True, default=str)
    return hmac.digest(request.app[SETTINGS].hash_key, b"body " + text.encode(), "sha256")
