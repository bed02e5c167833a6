"""Programmes and the versions of their rules."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, request_schema, response_schema
from marshmallow import Schema, fields, validate
from uuid6 import uuid7

from service.api.company import CompanyId, ParticipantId, ProgrammeKey, answer_client_once, locate
from service.api.docs.describe import IDEMPOTENCY_KEY, in_path
from service.api.events import EventMembersSchema
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_client, needs
from service.api.http.fields import (
    ChangeSchema,
    MatchingText,
    Moment,
    PageQuery,
    RequestSchema,
    TrimmedText,
    TrueOrFalse,
    by_rule,
    readable,
)
from service.api.http.front import API
from service.api.http.requests import public_path, read_body, read_page
from service.api.http.responses import PageSchema, answer, respond
from service.api.rules import LARGEST_COUNT, RULES_EXAMPLE, RulesSchema, whole
from service.domain.errors import (
    InvalidInput,
    NotAllowed,
    ProgrammeKeyTaken,
    ProgrammeNotFound,
    RulesChanged,
)
from service.domain.events import Event, check_moment, check_refund
from service.domain.programmes import (
    DEFAULT_PROGRAMME_ID,
    PROGRAMME_KEY,
    Supposed,
    check_landing_url,
    in_full,
    rules_of,
)
from service.domain.referrals import ReferralReason, ReferralState
from service.domain.scopes import Scope
from service.use_cases.programmes import NewProgramme, ProgrammeChange

LARGEST_VERSION: Final = 2**31 - 1
_KEY: Final = in_path("key", "The programme's key.", "default")
_VERSION: Final = in_path("version", "The version of the rules.", "1")
_NOBODY: Final = DEFAULT_PROGRAMME_ID
"""Whose the events are that rules are tried with."""


def _name(**options: Any) -> TrimmedText:
    return TrimmedText(
        validate=[
            validate.Length(1, 100, error="A name must have {min} to {max} characters."),
            readable("A name"),
        ],
        **options,
    )


def _landing_url(check: Callable[[str], None], more: str = "") -> TrimmedText:
    return TrimmedText(
        validate=by_rule(check),
        metadata={
            "description": f"Where share links redirect to, with `ref=CODE` added{more}.",
            "example": "https://shop.example/welcome",
        },
    )


def _check_landing_url_or_none(url: str) -> None:
    if url:
        check_landing_url(url)


class NewProgrammeSchema(RequestSchema):
    key = MatchingText(
        PROGRAMME_KEY.pattern,
        "A key must be 1 to 32 characters of a-z, 0-9 and -, beginning with a letter.",
        required=True,
    )
    name = _name(required=True)
    rules = fields.Nested(RulesSchema, required=True)
    landing_url = _landing_url(check_landing_url)


class ProgrammeChangeSchema(ChangeSchema):
    name = _name()
    landing_url = _landing_url(_check_landing_url_or_none, "; an empty string removes it")
    paused = TrueOrFalse(
        metadata={
            "description": "Whether the programme is paused: everything is recorded, but no reward "
            "becomes available."
        }
    )
    leaderboard = TrueOrFalse()
    ended = TrueOrFalse(
        metadata={
            "description": "Whether the programme has ended: its codes cannot be used, but "
            "existing referrals continue."
        }
    )


class NewRulesSchema(RequestSchema):
    version = whole(
        1,
        LARGEST_VERSION,
        required=True,
        metadata={"description": "The current version, which these rules replace."},
    )
    rules = fields.Nested(RulesSchema, required=True)


class TriedEventSchema(EventMembersSchema):
    # So that a body of *Report an event* can be tried as it is.
    external_id = CompanyId()
    participant_id = ParticipantId()
    programme = ProgrammeKey()


class TriedReferralSchema(RequestSchema):
    signed_up_at = Moment(metadata={"description": "When the referee signed up; now if omitted."})
    nth = whole(
        1,
        LARGEST_COUNT,
        metadata={"description": "Its position among the referrer's qualified ones; 1 if omitted."},
    )


class TrialSchema(RequestSchema):
    rules = fields.Nested(RulesSchema, required=True)
    referral = fields.Nested(TriedReferralSchema, required=True)
    events = fields.List(fields.Nested(TriedEventSchema), required=True)


class ProgrammeSchema(Schema):
    key = fields.String(attribute="programme.key", metadata={"example": "default"})
    name = fields.String(attribute="programme.name")
    version = fields.Integer(attribute="programme.version")
    rules = fields.Dict(
        metadata={"description": "The current rules, as they were sent.", "example": RULES_EXAMPLE}
    )
    effective_rules = fields.Dict(
        metadata={
            "description": "The same rules with defaults filled in: the `hold_days` of each reward "
            "and the action of each fraud rule.",
            "example": in_full(RULES_EXAMPLE),
        }
    )
    landing_url = fields.String(attribute="programme.landing_url", allow_none=True)
    paused = fields.Boolean(attribute="programme.paused")
    leaderboard = fields.Boolean(attribute="programme.leaderboard")
    ended_at = Moment(attribute="programme.ended_at", allow_none=True)
    created_at = Moment(attribute="programme.created_at")


class ProgrammesSchema(PageSchema):
    items = fields.List(fields.Nested(ProgrammeSchema))


class RulesVersionSchema(Schema):
    version = fields.Integer()
    rules = fields.Dict(metadata={"example": RULES_EXAMPLE})
    created_at = Moment()


class TriedRewardSchema(Schema):
    rule = fields.String(attribute="rule.name", metadata={"example": "friend"})
    to = fields.String(attribute="rule.to", metadata={"example": "referrer"})
    unit = fields.String(metadata={"example": "EUR"})
    amount = fields.Integer(metadata={"description": "In minor units.", "example": 500})
    event_id = fields.String(
        attribute="cause.external_id",
        dump_default=None,
        allow_none=True,
        metadata={"description": "The event it is for; null if it is for the referral itself."},
    )
    available_at = Moment(metadata={"description": "When the reward's hold would end."})


class AssessmentSchema(Schema):
    state = fields.Enum(ReferralState, by_value=True)
    reason = fields.String(metadata={"example": ReferralReason.QUALIFIED})
    rewards = fields.List(fields.Nested(TriedRewardSchema))


@docs(tags=["Programmes"], summary="List programmes", refuses=(NotAllowed,))
@querystring_schema(PageQuery)
@response_schema(ProgrammesSchema, 200, description="A page of programmes, newest first.")
@needs(Scope.PROGRAMME_READ)
async def list_programmes(request: web.Request) -> web.Response:
    page = await request.app[SERVICES].programmes.page(*read_page(request))
    return respond(request, page)


@docs(
    tags=["Programmes"],
    summary="Show a programme",
    parameters=[_KEY],
    refuses=(ProgrammeNotFound, NotAllowed),
)
@response_schema(ProgrammeSchema, 200, description="The programme and its current rules.")
@needs(Scope.PROGRAMME_READ)
async def show_programme(request: web.Request) -> web.Response:
    found = await request.app[SERVICES].programmes.find(_key_in(request))
    return respond(request, found)


@docs(
    tags=["Programmes"],
    summary="Create a programme",
    parameters=[IDEMPOTENCY_KEY],
    refuses=(ProgrammeKeyTaken, NotAllowed),
    locates=(201,),
)
@request_schema(
    NewProgrammeSchema, example={"key": "spring", "name": "Spring", "rules": RULES_EXAMPLE}
)
@response_schema(ProgrammeSchema, 201, description="The new programme.")
@needs(Scope.PROGRAMME_MANAGE)
async def create_programme(request: web.Request) -> web.Response:
    made_by = current_client(request)
    new = NewProgramme(**await read_body(request))
    response = await answer_client_once(
        request,
        lambda once: request.app[SERVICES].programmes.create(new, made_by, once),
        lambda shown: answer(request, shown, 201),
    )
    return locate(request, response, "programmes", "key")


@docs(
    tags=["Programmes"],
    summary="Change a programme",
    description="Changes the members that are sent.",
    parameters=[_KEY],
    refuses=(ProgrammeNotFound, NotAllowed),
)
@request_schema(ProgrammeChangeSchema, example={"paused": True})
@response_schema(ProgrammeSchema, 200, description="The changed programme.")
@needs(Scope.PROGRAMME_MANAGE)
async def change_programme(request: web.Request) -> web.Response:
    change = ProgrammeChange(**await read_body(request))
    shown = await request.app[SERVICES].programmes.change(_key_in(request), change)
    return respond(request, shown)


@docs(
    tags=["Programmes"],
    summary="Replace a programme's rules",
    description="Adds a version of the rules, which applies to new referrals. Existing referrals "
    "keep the version they were made under.",
    parameters=[_KEY],
    refuses=(ProgrammeNotFound, RulesChanged, NotAllowed),
    locates=(201,),
)
@request_schema(NewRulesSchema, example={"version": 1, "rules": RULES_EXAMPLE})
@response_schema(RulesVersionSchema, 201, description="The new version.")
@needs(Scope.PROGRAMME_MANAGE)
async def replace_rules(request: web.Request) -> web.Response:
    made_by = current_client(request)
    members = await read_body(request)
    key, rules = _key_in(request), members["rules"]
    version, created_at = await request.app[SERVICES].programmes.replace_rules(
        key, members["version"], rules, made_by
    )
    shown = {"version": version, "rules": rules, "created_at": created_at}
    response = respond(request, shown, 201)
    response.headers["Location"] = public_path(request, f"{API}/programmes/{key}/rules/{version}")
    return response


@docs(
    tags=["Programmes"],
    summary="Show a version of the rules",
    description="Shows one version of a programme's rules. A version never changes.",
    parameters=[_KEY, _VERSION],
    refuses=(ProgrammeNotFound, NotAllowed),
)
@response_schema(RulesVersionSchema, 200, description="The version of the rules.")
@needs(Scope.PROGRAMME_READ)
async def show_rules(request: web.Request) -> web.Response:
    version = request.match_info["version"]
    number = int(version) if version.isascii() and version.isdigit() and len(version) < 10 else 0
    rules, created_at = await request.app[SERVICES].programmes.find_version(
        _key_in(request), number
    )
    shown = {"version": number, "rules": rules, "created_at": created_at}
    return respond(request, shown)


@docs(
    tags=["Programmes"],
    summary="Try out rules",
    description="Shows what would become of a sign-up and its events under the given rules. "
    "Nothing is stored.",
    parameters=[_KEY],
    refuses=(ProgrammeNotFound, NotAllowed),
)
@request_schema(
    TrialSchema,
    example={
        "rules": RULES_EXAMPLE,
        "referral": {},
        "events": [{"id": "order-1001", "type": "purchase", "amount": 4900, "unit": "EUR"}],
    },
)
@response_schema(
    AssessmentSchema,
    200,
    description="The state that the referral would have, and the rewards it would earn.",
)
@needs(Scope.PROGRAMME_MANAGE)
async def try_rules(request: web.Request) -> web.Response:
    body = await read_body(request)
    now = request.app[SERVICES].clock()
    check_moment(body["referral"].get("signed_up_at"), now, "referral/signed_up_at")
    _check_events(body["events"], now)
    signed_up_at = body["referral"].get("signed_up_at", now)
    referral = Supposed(
        registered_at=signed_up_at,
        window_ends_at=rules_of(body["rules"]).window_end(signed_up_at),
        nth=body["referral"].get("nth"),
    )
    told = {members["id"]: members for members in body["events"]}
    events = [_event(members, now) for members in told.values()]
    trial = await request.app[SERVICES].programmes.try_rules(
        _key_in(request), body["rules"], referral, events
    )
    return respond(request, trial)


def _key_in(request: web.Request) -> str:
    key = request.match_info["key"]
    if not PROGRAMME_KEY.fullmatch(key):
        raise ProgrammeNotFound
    return key


def _check_events(events: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Raise InvalidInput if they could not all be reported."""
    known: dict[str, Mapping[str, Any]] = {}
    for place, event in enumerate(events):
        at = f"events/{place}"
        check_moment(event.get("occurred_at"), now, f"{at}/occurred_at")
        if known.setdefault(event["id"], event) != event:
            raise InvalidInput(
                "Another event in the list has this id, with different content.", field=f"{at}/id"
            )
    for place, event in enumerate(events):
        refunded = known.get(event.get("refunds", ""))
        if refunded is not None:
            check_refund(
                refunded["type"], refunded.get("unit"), event.get("unit"), f"events/{place}/"
            )


def _event(members: dict[str, Any], now: datetime) -> Event:
    return Event(
        event_id=uuid7(),
        programme_id=DEFAULT_PROGRAMME_ID,
        external_id=members["id"],
        participant_id=_NOBODY,
        type=members["type"],
        amount=members.get("amount"),
        unit=members.get("unit"),
        refunds=members.get("refunds"),
        occurred_at=members.get("occurred_at", now),
        received_at=now,
    )
