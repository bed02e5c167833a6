"""Events: what participants did, as a company reports it."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from aiohttp_apispec import docs, request_schema, response_schema
from marshmallow import Schema, ValidationError, fields, validates_schema

from service.api.company import (
    CompanyId,
    EventSchema,
    ProgrammeReferralSchema,
    WhoSchema,
    answer_client_once,
    fingerprint_of,
    moment_rule,
    who_of,
)
from service.api.docs.describe import IDEMPOTENCY_KEY
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_client, needs
from service.api.http.fields import Amount, Moment, RequestSchema
from service.api.http.requests import read_body
from service.api.http.responses import answer
from service.api.rewards import RewardSchema
from service.api.rules import EventType, Unit
from service.domain.errors import IdReused, NotAllowed
from service.domain.events import REFUND, Outcome
from service.domain.scopes import Scope
from service.use_cases.events import EventReport


class EventMembersSchema(RequestSchema):
    id = CompanyId(
        required=True,
        metadata={
            "description": "Your own id for the event, such as an order number. An id counts only "
            "once, ever: to retry a call, send the same id.",
            "example": "order-1001",
        },
    )
    type = EventType(
        required=True,
        metadata={
            "description": "What happened, as your rules name it. An event called `signup`, "
            "`qualified` or `milestone` is recorded but has no effect, because rules use these "
            "names for something else.",
            "example": "purchase",
        },
    )
    amount = Amount(
        smallest=0,
        metadata={
            "description": "In minor units, such as 4900 for 49 euros; requires `unit`. A `refund` "
            "without an amount refunds all of the event.",
            "example": 4900,
        },
    )
    unit = Unit(
        metadata={
            "description": "An ISO 4217 code, or a unit of your own in lower case, such as "
            "`points`.",
            "example": "EUR",
        }
    )
    occurred_at = Moment(
        metadata={"description": "When the event happened, at most 366 days ago; now if omitted."}
    )
    refunds = CompanyId(
        metadata={
            "description": "Required for a `refund`, and only allowed there: the id of the "
            "refunded event."
        }
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _check_members(self, data: Mapping[str, Any], original: Any, **_: Any) -> None:
        if not isinstance(original, dict):
            return
        given = {name for name, value in original.items() if value is not None}
        faults = {}
        if "amount" in given and "unit" not in given:
            faults["unit"] = ["This is required with an amount."]
        if "unit" in given and "amount" not in given:
            faults["amount"] = ["This is required with a unit."]
        is_refund = original.get("type") == REFUND
        if is_refund and "refunds" not in given:
            faults["refunds"] = ["This is required for a refund: the id of the refunded event."]
        if not is_refund and "refunds" in data:
            faults["refunds"] = ["Only an event of type refund can have this member."]
        if faults:
            raise ValidationError(faults)


class EventReportSchema(EventMembersSchema, WhoSchema):
    pass


class ReportedSchema(Schema):
    event = fields.Nested(EventSchema)
    outcome = fields.Enum(
        Outcome,
        by_value=True,
        metadata={
            "description": "What followed from the event. `qualified`: the referral has qualified, "
            "and its rewards have been given; `referral.state` is already `rewarded` if one of "
            "them has no hold. `rewarded`: a rule gave a reward for the event itself. `reversed`: "
            "the referral no longer qualifies. `changed`: rewards were reversed, in whole or in "
            "part. The other values say why nothing followed, or what the event is waiting for."
        },
    )
    referral = fields.Nested(
        ProgrammeReferralSchema,
        allow_none=True,
        metadata={"description": "The participant's referral as it is now; null if there is none."},
    )
    rewards = fields.List(
        fields.Nested(RewardSchema),
        metadata={"description": "The referral's newest 100 rewards, as they are now."},
    )


@docs(
    tags=["Programmes"],
    summary="Report an event",
    description="Reports something that a participant did, such as a purchase, a subscription or a "
    "refund. The response says what followed. Events can be reported late, more than once, in any "
    "order, and before the sign-up: the result is the same.",
    parameters=[IDEMPOTENCY_KEY],
    refuses=(IdReused, NotAllowed),
)
@request_schema(
    EventReportSchema,
    example={
        "id": "order-1001",
        "type": "purchase",
        "external_id": "u-2",
        "amount": 4900,
        "unit": "EUR",
    },
)
@response_schema(
    ReportedSchema,
    200,
    description="The event, which had already been reported, and the referral as it is now.",
)
@response_schema(ReportedSchema, 201, description="The new event, and what followed from it.")
@needs(Scope.EVENTS_WRITE)
async def report_event(request: web.Request) -> web.Response:
    made_by = current_client(request)
    members = await read_body(request, moment_rule(request, "occurred_at"))
    fingerprint = fingerprint_of(request, members)
    report = EventReport(
        external_id=members.pop("id"), fingerprint=fingerprint, who=who_of(members), **members
    )
    return await answer_client_once(
        request,
        lambda once: request.app[SERVICES].events.report(report, made_by, once),
        lambda reported: answer(request, reported, 201 if reported.is_new else 200),
    )
