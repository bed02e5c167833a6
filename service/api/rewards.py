"""Rewards: what rules gave to whom, as companies see it, and users their own."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, response_schema
from marshmallow import Schema, ValidationError, fields, validates_schema

from service.api.company import CompanyId, ParticipantId
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_reader, needs
from service.api.http.fields import MatchingText, Moment, PageQuery, Text
from service.api.http.prebuilt import PrebuiltResponse
from service.api.http.requests import page_in, read_query
from service.api.http.responses import PageSchema, write_items
from service.domain.errors import NotAllowed
from service.domain.pages import Page
from service.domain.programmes import DEFAULT_PROGRAMME
from service.domain.rewards import ListedReward, RewardState
from service.domain.scopes import Scope
from service.use_cases.ledger import Whose
from service.use_cases.participants import Who


class RewardSchema(Schema):
    id = fields.UUID(attribute="reward_id")
    rule = fields.String(
        metadata={"description": "The name of the rule that gave the reward.", "example": "friend"}
    )
    version = fields.Integer(
        metadata={"description": "The version of the rules that the reward was given under."}
    )
    to = fields.String(
        metadata={
            "description": "Who gets the reward: `referrer` or `referee`.",
            "example": "referrer",
        }
    )
    participant_id = fields.UUID()
    referral_id = fields.UUID(
        allow_none=True,
        metadata={
            "description": "The referral that earned the reward. Null for a milestone and, when "
            "referrers see it, for a percentage, which would reveal how much a friend has spent."
        },
    )
    unit = fields.String(metadata={"example": "EUR"})
    amount = fields.Integer(
        metadata={"description": "In minor units, as originally given.", "example": 500}
    )
    reversed = fields.Integer(
        metadata={"description": "How much of `amount` has been taken back.", "example": 0}
    )
    state = fields.Enum(
        RewardState,
        by_value=True,
        metadata={
            "description": "`pending` until the hold ends, then `available`; `reversed` once all "
            "of it has been taken back."
        },
    )
    held = fields.Boolean(
        metadata={
            "description": "Whether an open review or a block keeps the reward from becoming "
            "available."
        }
    )
    available_at = Moment(metadata={"description": "When the reward's hold ends or ended."})
    created_at = Moment()


class RewardsSchema(PageSchema):
    items = fields.List(fields.Nested(RewardSchema))


class WhoseQuery(PageQuery):
    """Whose rewards or transfers are wanted: a user may only name themselves."""

    external_id = CompanyId(
        load_default=None,
        metadata={
            "description": "Only this participant's, by your own id. Send either this or "
            "`participant_id`, or neither."
        },
    )
    participant_id = ParticipantId(
        load_default=None,
        metadata={"description": "Only this participant's, by this service's id."},
    )
    programme = Text(
        load_default=None,
        metadata={
            "description": "The programme's key. One programme's are listed: if omitted, that of "
            "`participant_id`, or else `default`."
        },
    )

    @validates_schema
    def _check_who(self, data: Mapping[str, Any], **_: Any) -> None:
        if data["external_id"] is not None and data["participant_id"] is not None:
            raise ValidationError(
                "Give one of external_id and participant_id, or neither.", "external_id"
            )


class RewardQuery(WhoseQuery):
    state = fields.Enum(
        RewardState,
        by_value=True,
        load_default=None,
        metadata={"description": "Only rewards in this state."},
    )
    rule = MatchingText(
        "[a-z][a-z0-9-]{0,31}",
        "This is not a valid name of a rule.",
        load_default=None,
        metadata={"description": "Only rewards given by this rule."},
    )


async def whose(request: web.Request, query: Mapping[str, Any]) -> Whose:
    """Return whose things the query asks for: the user's own, a participant's, or all.

    Raises NotAllowed for a user who asks for another participant's.
    """
    reader = await current_reader(request)
    names = {name: query[name] for name in ("external_id", "participant_id", "programme")}
    programme = names["programme"] or DEFAULT_PROGRAMME
    if reader is not None:
        if names["external_id"] is not None or names["participant_id"] not in {None, reader}:
            raise NotAllowed("You can see only your own; omit external_id and participant_id.")
        return Whose(user_id=reader, programme=programme)
    if names["external_id"] is None and names["participant_id"] is None:
        return Whose(programme=programme)
    return Whose(who=Who(**names))


@docs(
    tags=["Rewards"],
    summary="List rewards",
    description="Lists rewards, newest first. Users see only their own; clients and admins see one "
    "participant's, or all of a programme.",
    refuses=(NotAllowed,),
)
@querystring_schema(RewardQuery)
@response_schema(RewardsSchema, 200, description="A page of rewards.")
@needs(Scope.PROGRAMME_READ, own=Scope.REWARDS_READ)
async def list_rewards(request: web.Request) -> web.Response:
    query = read_query(request)
    page = await request.app[SERVICES].ledger.rewards(
        await whose(request, query), query["state"], query["rule"], *page_in(request, query)
    )
    return PrebuiltResponse(write_rewards(page))


def write_rewards(page: Page[ListedReward]) -> bytes:
    """Return the page as RewardsSchema writes it, in a tenth of the time."""
    items = [
        {
            "id": str(one.reward_id),
            "rule": one.rule,
            "version": one.version,
            "to": one.to,
            "participant_id": str(one.participant_id),
            "referral_id": None if one.referral_id is None else str(one.referral_id),
            "unit": one.unit,
            "amount": one.amount,
            "reversed": one.reversed,
            "state": one.state,
            "held": one.held,
            "available_at": one.available_at,
            "created_at": one.created_at,
        }
        for one in page.items
    ]
    return write_items(RewardsSchema, items, page)
