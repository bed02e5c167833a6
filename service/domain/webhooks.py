"""Webhooks: the catalogue of what is announced, and the data of each announcement.

Data holds ids, states and amounts: never an email address, an IP address or free text. A company's
id of a person is put in when a message is sent, and stored in none: it has one place, from which it
can be erased.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from service.domain.clock import plain_text
from service.domain.ledger import Transfer
from service.domain.programmes import Programme
from service.domain.referrals import ProgrammeReferral, ReferralState
from service.domain.rewards import Reward

LARGEST_BODY: Final = 4096
"""In bytes; no message comes near it."""
# With a space, which no id of a company has; no other text of a message begins so.
_EXTERNAL_ID: Final = re.compile(rb'"participant ([0-9a-f-]{36})"')


class EventType(StrEnum):
    """What companies can be told. Nothing is ever renamed."""

    PARTICIPANT_CREATED = "participant.created"
    REFERRAL_CREATED = "referral.created"
    REFERRAL_QUALIFIED = "referral.qualified"
    REFERRAL_REWARDED = "referral.rewarded"
    REFERRAL_REJECTED = "referral.rejected"
    REFERRAL_REVERSED = "referral.reversed"
    REFERRAL_FLAGGED = "referral.flagged"
    REWARD_CREATED = "reward.created"
    REWARD_AVAILABLE = "reward.available"
    REWARD_REVERSED = "reward.reversed"
    REDEMPTION_CREATED = "redemption.created"
    REDEMPTION_CANCELLED = "redemption.cancelled"
    PROGRAMME_CHANGED = "programme.changed"
    ENDPOINT_DISABLED = "endpoint.disabled"
    TEST = "webhook.test"

    @property
    def meaning(self) -> str:
        """What has happened, in a sentence."""
        return _MEANINGS[self]


_MEANINGS: Final[Mapping[EventType, str]] = {
    EventType.PARTICIPANT_CREATED: "A participant was created for one of the company's own users.",
    EventType.REFERRAL_CREATED: "Someone signed up with a referral code.",
    EventType.REFERRAL_QUALIFIED: "A referral qualified.",
    EventType.REFERRAL_REWARDED: "A reward for a qualified referral became available.",
    EventType.REFERRAL_REJECTED: "A referral was rejected, for the `reason` given.",
    EventType.REFERRAL_REVERSED: "A referral that had qualified no longer does, for the `reason` "
    "given.",
    EventType.REFERRAL_FLAGGED: "A sign-up matched the fraud rules listed in `flags`.",
    EventType.REWARD_CREATED: "A reward was given. If it has no hold, its `state` is already "
    "`available`.",
    EventType.REWARD_AVAILABLE: "A reward's hold ended, and it became available.",
    EventType.REWARD_REVERSED: "A reward was reversed: `reversed` is how much of `amount` has been "
    "taken back so far.",
    EventType.REDEMPTION_CREATED: "An available amount was paid out or spent.",
    EventType.REDEMPTION_CANCELLED: "A redemption was cancelled, and its amount is available "
    "again.",
    EventType.PROGRAMME_CHANGED: "A programme was changed, or its rules were replaced.",
    EventType.ENDPOINT_DISABLED: "Another endpoint was disabled because its deliveries failed.",
    EventType.TEST: "A test of the endpoint was requested.",
}


@dataclass(frozen=True, slots=True)
class ExternalId:
    """Stands for a company's id of a participant until the message is sent."""

    participant_id: UUID


@dataclass(frozen=True, slots=True)
class Announcement:
    """Something that companies can be told about."""

    type: EventType
    data: Mapping[str, Any]

    def body(self, now: datetime) -> bytes:
        """Return the message's bytes as they are stored."""
        document = {"type": self.type, "timestamp": now, "data": self.data}
        return json.dumps(
            document, default=_plain, ensure_ascii=False, separators=(",", ":")
        ).encode()


def _plain(value: object) -> str:
    if isinstance(value, ExternalId):
        return f"participant {value.participant_id}"
    return plain_text(value)


def participants_in(body: bytes) -> set[UUID]:
    """Return the participants whose external ids a stored message is sent with."""
    return {UUID(found.decode()) for found in _EXTERNAL_ID.findall(body)}


def as_sent(body: bytes, external_ids: Mapping[UUID, str | None]) -> bytes:
    """Return the bytes to send of a stored message: the same ones until a participant is erased."""

    def external_id(found: re.Match[bytes]) -> bytes:
        return json.dumps(external_ids.get(UUID(found[1].decode()))).encode()

    return _EXTERNAL_ID.sub(external_id, body)


def participant_created(programme: str, participant_id: UUID) -> Announcement:
    """`programme` is the programme's key, as in all announcements."""
    participant = {"id": participant_id, "external_id": ExternalId(participant_id)}
    data = {"programme": programme, "participant": participant}
    return Announcement(EventType.PARTICIPANT_CREATED, data)


def referral_announcement(
    kind: EventType, referral: ProgrammeReferral, event_id: str | None = None
) -> Announcement:
    """Return what is told of a referral. `event_id` is the company's id of what caused it."""
    return Announcement(
        kind,
        {
            "programme": referral.programme,
            "referral": {
                "id": referral.referral_id,
                "external_id": ExternalId(referral.referral_id),
                "referrer_id": referral.referrer_id,
                "referrer_external_id": ExternalId(referral.referrer_id),
                "state": referral.state,
                "reason": referral.reason,
                "review": referral.review,
                "flags": list(referral.flags),
                "sequence": referral.sequence,
                "version": referral.version,
            },
            "event_id": event_id,
        },
    )


_OF_STATE: Final = {
    ReferralState.QUALIFIED: EventType.REFERRAL_QUALIFIED,
    ReferralState.REWARDED: EventType.REFERRAL_REWARDED,
    ReferralState.REJECTED: EventType.REFERRAL_REJECTED,
    ReferralState.REVERSED: EventType.REFERRAL_REVERSED,
}


def referral_created(begun: ProgrammeReferral, referral: ProgrammeReferral) -> list[Announcement]:
    """Return what a new referral announces: how it began, and what fraud rules made of it."""
    announced = [referral_announcement(EventType.REFERRAL_CREATED, begun)]
    if referral.flags:
        announced.append(referral_announcement(EventType.REFERRAL_FLAGGED, referral))
    return [*announced, *referral_decided(begun, referral)]


def referral_decided(
    before: ProgrammeReferral, referral: ProgrammeReferral, event_id: str | None = None
) -> list[Announcement]:
    """Return what a decision about a referral announces: its new state."""
    if referral.state is before.state or referral.state not in _OF_STATE:
        return []
    return [referral_announcement(_OF_STATE[referral.state], referral, event_id)]


def reward_announcement(kind: EventType, programme: str, reward: Reward) -> Announcement:
    """Return what is told of a reward, as `GET /rewards` shows it."""
    return Announcement(
        kind,
        {
            "programme": programme,
            "reward": {
                "id": reward.reward_id,
                "rule": reward.rule,
                "version": reward.version,
                "to": reward.to,
                "participant_id": reward.participant_id,
                "external_id": ExternalId(reward.participant_id),
                "referral_id": reward.referral_id,
                "unit": reward.unit,
                "amount": reward.amount,
                "reversed": reward.reversed,
                "state": reward.state,
                "held": reward.held,
                "available_at": reward.available_at,
            },
        },
    )


def rewards_settled(
    programme: str,
    *,
    granted: Iterable[Reward] = (),
    released: Iterable[Reward] = (),
    taken_back: Iterable[Reward] = (),
) -> list[Announcement]:
    """Return what is told of rewards that were given, became available, or were taken back."""
    kinds = {
        EventType.REWARD_REVERSED: taken_back,
        EventType.REWARD_CREATED: granted,
        EventType.REWARD_AVAILABLE: released,
    }
    return [
        reward_announcement(kind, programme, reward)
        for kind, rewards in kinds.items()
        for reward in rewards
    ]


def redemption_announcement(kind: EventType, programme: str, redemption: Transfer) -> Announcement:
    """Return what is told of a redemption. `redemption_id` is the company's id of it."""
    return Announcement(
        kind,
        {
            "programme": programme,
            "redemption": {
                "id": redemption.transfer_id,
                "redemption_id": redemption.external_id,
                "participant_id": redemption.participant_id,
                "external_id": ExternalId(redemption.participant_id),
                "unit": redemption.unit,
                "amount": redemption.amount,
            },
        },
    )


def programme_changed(programme: Programme) -> Announcement:
    return Announcement(
        EventType.PROGRAMME_CHANGED,
        {
            "programme": programme.key,
            "version": programme.version,
            "paused": programme.paused,
            "leaderboard": programme.leaderboard,
            "ended_at": programme.ended_at,
        },
    )


def endpoint_disabled(endpoint_id: UUID, reason: str) -> Announcement:
    return Announcement(
        EventType.ENDPOINT_DISABLED, {"endpoint": {"id": endpoint_id, "disabled_reason": reason}}
    )


def endpoint_test(endpoint_id: UUID) -> Announcement:
    return Announcement(EventType.TEST, {"endpoint": {"id": endpoint_id}})
