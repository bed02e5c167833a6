"""What companies are sent: `webhooks` of the OpenAPI document, one for each type of the catalogue.

Made from announcements as they are sent, so that it cannot say anything else.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from service.domain import webhooks
from service.domain.ledger import Account, Transfer, TransferKind
from service.domain.programmes import DEFAULT_PROGRAMME, DEFAULT_PROGRAMME_ID, Programme
from service.domain.referrals import ProgrammeReferral, ReferralReason, ReferralState, Review
from service.domain.rewards import Reward, RewardState
from service.domain.webhook_deliveries import DisabledReason
from service.domain.webhooks import Announcement, EventType, ExternalId

_NOW: Final = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
_REFERRER: Final = UUID("01980c2e-6f52-7b1a-8e4d-5a9b0c1d2e3f")
_REFEREE: Final = UUID("01980c2e-7a10-7c3d-9f21-6b8c1d2e3f40")
_THING: Final = UUID("01980c2e-8b5c-7d4e-8a32-7c9d2e3f4051")
_EXTERNAL_IDS: Final[Mapping[UUID, str | None]] = {_REFERRER: "u-1", _REFEREE: "u-2"}
_EVENT: Final = "order-1001"
_MAY_BE_NULL: Final = {"event_id", "referral_id", "redemption_id", "ended_at"}
# In words, and no tag: a generator of clients writes what Python cannot read for the parameters of
# webhooks, into the module of their tag.
_HEADERS: Final = """

| header | |
|---|---|
| `webhook-id` | The message's id, the same for every attempt. |
| `webhook-timestamp` | The Unix time of this attempt, in seconds. |
| `webhook-signature` | `v1,` followed by the base64 of HMAC-SHA256(secret, `id.timestamp.body`). \
While the previous secret still signs, too, its signature follows after a space. |"""
_STATE_OF: Final = {
    EventType.REFERRAL_CREATED: (ReferralState.PENDING, ReferralReason.SIGNED_UP, 1),
    EventType.REFERRAL_FLAGGED: (ReferralState.PENDING, ReferralReason.SIGNED_UP, 1),
    EventType.REFERRAL_QUALIFIED: (ReferralState.QUALIFIED, ReferralReason.QUALIFIED, 2),
    EventType.REFERRAL_REWARDED: (ReferralState.REWARDED, ReferralReason.QUALIFIED, 3),
    EventType.REFERRAL_REJECTED: (ReferralState.REJECTED, ReferralReason.WINDOW_PASSED, 2),
    EventType.REFERRAL_REVERSED: (ReferralState.REVERSED, ReferralReason.REFUNDED, 3),
}
_CAUSED_BY_EVENT: Final = {EventType.REFERRAL_QUALIFIED, EventType.REFERRAL_REVERSED}


def describe_webhooks() -> dict[str, Any]:
    """Return a webhook for each type, with an example."""
    return {kind.value: {"post": _operation(example_of(kind))} for kind in EventType}


def example_of(kind: EventType) -> Announcement:
    """Return an announcement of that type."""
    family = kind.partition(".")[0]
    if kind in _STATE_OF:
        return _referral(kind)
    if family == "reward":
        return _reward(kind)
    if family == "redemption":
        return webhooks.redemption_announcement(kind, DEFAULT_PROGRAMME, _REDEMPTION)
    if kind is EventType.PARTICIPANT_CREATED:
        return webhooks.participant_created(DEFAULT_PROGRAMME, _REFERRER)
    if kind is EventType.PROGRAMME_CHANGED:
        return webhooks.programme_changed(_PROGRAMME)
    if kind is EventType.ENDPOINT_DISABLED:
        return webhooks.endpoint_disabled(_THING, DisabledReason.FAILING)
    return webhooks.endpoint_test(_THING)


def _referral(kind: EventType) -> Announcement:
    state, reason, sequence = _STATE_OF[kind]
    referral = ProgrammeReferral(
        referral_id=_REFEREE,
        programme_id=DEFAULT_PROGRAMME_ID,
        programme=DEFAULT_PROGRAMME,
        version=3,
        referrer_id=_REFERRER,
        code="7GXKQ2MPRT",
        state=state,
        reason=reason,
        review=Review.NONE,
        flags=["self-referral"] if kind is EventType.REFERRAL_FLAGGED else [],
        sequence=sequence,
        nth=None,
        registered_at=_NOW,
        window_ends_at=None,
    )
    event_id = _EVENT if kind in _CAUSED_BY_EVENT else None
    return webhooks.referral_announcement(kind, referral, event_id)


def _reward(kind: EventType) -> Announcement:
    state = kind.partition(".")[2]
    reward = Reward(
        reward_id=_THING,
        programme_id=DEFAULT_PROGRAMME_ID,
        version=3,
        rule="friend",
        participant_id=_REFERRER,
        referral_id=_REFEREE,
        cause_id=_REFEREE,
        nth=0,
        unit="EUR",
        amount=500,
        reversed=500 if kind is EventType.REWARD_REVERSED else 0,
        state=RewardState.PENDING if kind is EventType.REWARD_CREATED else RewardState(state),
        held=False,
        available_at=_NOW,
        created_at=_NOW,
    )
    return webhooks.reward_announcement(kind, DEFAULT_PROGRAMME, reward)


_REDEMPTION: Final = Transfer(
    transfer_id=_THING,
    programme_id=DEFAULT_PROGRAMME_ID,
    participant_id=_REFERRER,
    unit="EUR",
    kind=TransferKind.REDEMPTION,
    from_account=Account.AVAILABLE,
    to_account=Account.REDEEMED,
    amount=500,
    external_id="payout-7",
    made_by="client:shop",
    created_at=_NOW,
)
_PROGRAMME: Final = Programme(
    programme_id=DEFAULT_PROGRAMME_ID,
    key=DEFAULT_PROGRAMME,
    name="Default",
    version=4,
    landing_url=None,
    paused=False,
    leaderboard=False,
    ended_at=None,
    created_at=_NOW,
)


def _operation(announced: Announcement) -> dict[str, Any]:
    kind = announced.type
    properties = {
        "type": {"type": "string", "const": kind.value},
        "timestamp": {"type": "string", "format": "date-time"},
        "data": _schema_of("data", announced.data),
    }
    return {
        "summary": kind.value,
        "description": kind.meaning + _HEADERS,
        "operationId": "on" + "".join(word.title() for word in kind.split(".")),
        "security": [],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": properties,
                        "required": list(properties),
                    },
                    "example": json.loads(webhooks.as_sent(announced.body(_NOW), _EXTERNAL_IDS)),
                }
            },
        },
        "responses": {
            "2XX": {"description": "Delivered. The body of the response is ignored."},
            "410": {"description": "Disables the endpoint at once."},
            "default": {
                "description": "A failed attempt: the message is sent again later. Redirects are "
                "not followed."
            },
        },
    }


def _schema_of(name: str, value: object) -> dict[str, Any]:
    if isinstance(value, Mapping):
        members = {member: _schema_of(member, each) for member, each in value.items()}
        return {"type": "object", "properties": members, "required": list(members)}
    if isinstance(value, list):
        return {"type": "array", "items": {"type": "string"}}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer"}
    kind = ["string", "null"] if name in _MAY_BE_NULL or isinstance(value, ExternalId) else "string"
    if isinstance(value, UUID) or name == "referral_id":
        return {"type": kind, "format": "uuid"}
    if isinstance(value, datetime) or name.endswith("_at"):
        return {"type": kind, "format": "date-time"}
    return {"type": kind}
