"""Referrals as companies report and review them, and as referees see their own."""

from dataclasses import asdict
from typing import Any

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, request_schema, response_schema
from marshmallow import Schema, fields, validate

from service.api.company import (
    EventSchema,
    ParticipantId,
    ProgrammeReferralSchema,
    SignalsSchema,
    WhoSchema,
    answer_client_once,
    locate,
    moment_rule,
    who_of,
    with_parsed_email,
)
from service.api.docs.describe import IDEMPOTENCY_KEY
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_client, current_reader, needs
from service.api.http.fields import (
    Moment,
    OneOf,
    PageQuery,
    RequestSchema,
    Text,
    TrimmedText,
    readable,
)
from service.api.http.prebuilt import PrebuiltResponse
from service.api.http.requests import find_id, page_in, read_body, read_id, read_query
from service.api.http.responses import PageSchema, answer, respond, to_json
from service.api.users import email_rule
from service.domain.errors import (
    AlreadyReferred,
    NotAllowed,
    ReferralCodeUnusable,
    ReferralNotFound,
    SelfReferral,
)
from service.domain.programmes import DEFAULT_PROGRAMME
from service.domain.referrals import (
    ProgrammeReferral,
    ReferralFilter,
    ReferralReason,
    ReferralState,
    Review,
)
from service.domain.scopes import Scope
from service.repositories.idempotency_keys import Answer
from service.use_cases.referrals import ReferralHistory, Verdict
from service.use_cases.sign_ups import SignUp

LONGEST_REASON = 500


class SignUpSchema(WhoSchema, SignalsSchema):
    code = TrimmedText(
        required=True,
        metadata={"description": "The code that the user signed up with.", "example": "7GXKQ2MPRT"},
    )
    clicked_at = Moment(
        metadata={
            "description": "When the share link was clicked; now if omitted. The code must have "
            "been live then; it still counts if it has since been replaced or expired."
        }
    )
    signed_up_at = Moment(
        metadata={
            "description": "When the referee signed up, not before `clicked_at`; now if omitted. "
            "Send it if you report the sign-up late: events more than 5 minutes older than the "
            "sign-up never count."
        }
    )


class ProgrammeReferralsSchema(PageSchema):
    items = fields.List(fields.Nested(ProgrammeReferralSchema))


class DecisionSchema(Schema):
    sequence = fields.Integer()
    state = fields.Enum(ReferralState, by_value=True)
    review = fields.Enum(Review, by_value=True)
    reason = fields.String(metadata={"example": ReferralReason.QUALIFIED})
    made_by = fields.String(
        metadata={"description": "Who made the decision: `system`, `client:ID` or `user:ID`."}
    )
    event_id = fields.String(
        attribute="event_external_id",
        allow_none=True,
        metadata={
            "description": "Your own id for the event that led to the decision; null if none did.",
            "example": "order-1001",
        },
    )
    detail = fields.String(
        allow_none=True,
        metadata={
            "description": "The reason in the reviewer's own words; null unless a review decided."
        },
    )
    decided_at = Moment()
    optional = frozenset({"review", "made_by", "detail"})


class ReferralHistorySchema(ProgrammeReferralSchema):
    events = fields.List(fields.Nested(EventSchema), metadata={"description": "The newest 100."})
    decisions = fields.List(
        fields.Nested(DecisionSchema), metadata={"description": "The newest 100."}
    )
    optional = frozenset({"review", "flags"})


class ReferralQuery(PageQuery):
    state = OneOf(
        ReferralState, load_default=None, metadata={"description": "Only referrals in this state."}
    )
    review = OneOf(
        Review, load_default=None, metadata={"description": "Only referrals with this review."}
    )
    referrer_id = ParticipantId(
        load_default=None, metadata={"description": "Only referrals by this referrer."}
    )
    programme = Text(
        load_default=DEFAULT_PROGRAMME,
        metadata={
            "description": "The programme's key. One programme's are listed: if omitted, `default`."
        },
    )
    order = Text(
        load_default="newest",
        metadata={"description": "Whether the newest or the oldest referrals come first."},
        validate=validate.OneOf(["newest", "oldest"], error="This must be newest or oldest."),
    )


class VerdictSchema(RequestSchema):
    decision = Text(
        required=True,
        validate=validate.OneOf(["approve", "reject"], error="This must be approve or reject."),
    )
    reason = TrimmedText(
        required=True,
        validate=[
            validate.Length(
                1, LONGEST_REASON, error="A reason must have {min} to {max} characters."
            ),
            readable("A reason", lines=True),
        ],
        metadata={"description": "The reason in your own words. The referee cannot see it."},
    )


OWN_REFERRAL_SCHEMA = ReferralHistorySchema(
    exclude=("review", "flags", "decisions.review", "decisions.made_by", "decisions.detail")
)


@docs(
    tags=["Programmes"],
    summary="Report a sign-up",
    description="Reports that one of your users signed up with a referral code. Events of the user "
    "that you have already reported count from now on. Repeating the call returns the referral as "
    "it is.",
    parameters=[IDEMPOTENCY_KEY],
    refuses=(AlreadyReferred, ReferralCodeUnusable(field="code"), SelfReferral, NotAllowed),
    locates=(201,),
)
@request_schema(SignUpSchema, example={"code": "7GXKQ2MPRT", "external_id": "u-2"})
@response_schema(ProgrammeReferralSchema, 200, description="The referral, which already existed.")
@response_schema(ProgrammeReferralSchema, 201, description="The new referral.")
@needs(Scope.EVENTS_WRITE)
async def report_sign_up(request: web.Request) -> web.Response:
    made_by = current_client(request)
    members = await read_body(
        request,
        moment_rule(request, "clicked_at"),
        moment_rule(request, "signed_up_at"),
        email_rule("email"),
    )
    sign_up = SignUp(who=who_of(members), **with_parsed_email(members))

    def write(made: tuple[ProgrammeReferral, bool]) -> Answer:
        referral, is_new = made
        return answer(request, referral, 201 if is_new else 200)

    response = await answer_client_once(
        request, lambda once: request.app[SERVICES].sign_ups.report(sign_up, made_by, once), write
    )
    return locate(request, response, "referees", "id")


@docs(
    tags=["Programmes"],
    summary="List a programme's referrals",
    description="Lists the referrals of a programme, newest first unless `order` is `oldest`. Use "
    "`review=open` to find those that are waiting for a review.",
    refuses=(NotAllowed,),
)
@querystring_schema(ReferralQuery)
@response_schema(ProgrammeReferralsSchema, 200, description="A page of referrals.")
@needs(Scope.PROGRAMME_READ)
async def list_programme_referrals(request: web.Request) -> web.Response:
    query = read_query(request)
    wanted = ReferralFilter(
        **{name: query[name] for name in ("state", "review", "referrer_id", "programme")},
        oldest_first=query["order"] == "oldest",
    )
    page = await request.app[SERVICES].referrals.page_of_all(wanted, *page_in(request, query))
    return respond(request, page)


@docs(
    tags=["Programmes"],
    summary="Show a referral",
    description="Shows what became of a sign-up, and why. Referees can see their own referral, "
    "without `review`, `flags` or anything else about suspected fraud.",
    refuses=(ReferralNotFound, NotAllowed),
)
@response_schema(ReferralHistorySchema, 200, description="The referral.")
@needs(Scope.PROGRAMME_READ, own=Scope.REWARDS_READ)
async def show_referral(request: web.Request) -> web.Response:
    reader = await current_reader(request)
    referral_id = find_id(request, "referral_id")
    if reader is not None and referral_id != reader:
        raise NotAllowed("Only the referee, clients and admins can see a referral.")
    if referral_id is None:
        raise ReferralNotFound
    history = await request.app[SERVICES].referrals.find(referral_id)
    if reader is None:
        return respond(request, _flat(history))
    shown = OWN_REFERRAL_SCHEMA.dump(_flat(history.without_suspicions()))
    return PrebuiltResponse(to_json(shown))


@docs(
    tags=["Programmes"],
    summary="Review a referral",
    description="Approves or rejects a referral. Approving removes its flags and undoes a "
    "rejection; rejecting reverses its rewards.",
    refuses=(ReferralNotFound, NotAllowed),
)
@request_schema(
    VerdictSchema,
    example={"decision": "reject", "reason": "Support found that both are the same person."},
)
@response_schema(
    ReferralHistorySchema,
    200,
    description="The referral, for which the same decision had already been made.",
)
@response_schema(ReferralHistorySchema, 201, description="The referral after the decision.")
@needs(Scope.PROGRAMME_MANAGE)
async def review_referral(request: web.Request) -> web.Response:
    made_by = current_client(request)
    verdict = Verdict(**await read_body(request))
    history, is_new = await request.app[SERVICES].referrals.review(
        read_id(request, "referral_id", ReferralNotFound), verdict, made_by
    )
    return respond(request, _flat(history), 201 if is_new else 200)


def _flat(history: ReferralHistory) -> dict[str, Any]:
    """Return the referral's members with those of its history."""
    return {**asdict(history.referral), "events": history.events, "decisions": history.decisions}
