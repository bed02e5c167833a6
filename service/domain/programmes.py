"""Programmes: their rules, in versions, and `assess`, the one function that applies them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit
from uuid import UUID

from service.domain.errors import InvalidInput
from service.domain.events import Event
from service.domain.referrals import ReferralReason, ReferralState, Review

DEFAULT_PROGRAMME: Final = "default"
"""The key of the programme that accounts take part in."""
DEFAULT_PROGRAMME_ID: Final = UUID("00000000-0000-7000-8000-000000000001")
SIGN_UP: Final = "signup"
EMAIL_CONFIRMED: Final = "email_confirmed"
QUALIFIED: Final = "qualified"
MILESTONE: Final = "milestone"
WITHOUT_AMOUNT: Final = frozenset({SIGN_UP, EMAIL_CONFIRMED, QUALIFIED, MILESTONE})
"""What a reward is given on without an amount that a percentage could be of."""
CLOCKS_DIFFER_BY: Final = timedelta(minutes=5)
"""An event that occurred at most so long before the sign-up counts as after it: the two are
reported by different machines, and at the same instant."""
PROGRAMME_KEY: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
LONGEST_URL: Final = 2000
FraudAction = Literal["off", "flag", "hold", "reject"]


def check_landing_url(url: str) -> None:
    """Raise InvalidInput unless share links can lead there."""
    try:
        parts = urlsplit(url)
        port = parts.port or 1
    except ValueError:  # an unmatched bracket, or no port
        port = 0
    if (
        not port
        or len(url) > LONGEST_URL
        or not url.isascii()
        or not url.isprintable()
        or " " in url
        or parts.scheme not in {"https", "http"}
        or not parts.hostname
        or "@" in parts.netloc
    ):
        raise InvalidInput("This is not an http or https URL.", field="landing_url")


@dataclass(frozen=True, slots=True, kw_only=True)
class Programme:
    """A programme as it is now; `version` is that of its newest rules."""

    programme_id: UUID
    key: str
    name: str
    version: int
    landing_url: str | None
    paused: bool
    leaderboard: bool
    ended_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimum:
    """What an event has to be worth, in the unit's minor units, after its refunds."""

    amount: int
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Qualification:
    """What makes a referral qualify: `signup`, or an event of this type within so many days."""

    on: str
    minimum: Minimum | None = None
    within_days: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """What a reward is worth from the referrer's n-th qualified referral on."""

    starts_at: int
    amount: int | None = None
    basis_points: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRule:
    """What is given to whom, and when. Exactly one of `amount` and `basis_points`."""

    name: str
    to: Literal["referrer", "referee"]
    on: str
    unit: str
    amount: int | None = None
    basis_points: int | None = None
    max_amount: int | None = None
    hold_days: int = 0
    tiers: tuple[Tier, ...] = ()
    max_per_referrer: int | None = None
    max_total: int | None = None
    times: int | None = None
    within_days: int | None = None
    at: int | None = None
    every: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FraudRules:
    """What follows from each signal."""

    self_referral: FraudAction = "hold"
    same_device: FraudAction = "hold"
    same_ip: FraudAction = "flag"
    disposable_email: FraudAction = "flag"
    velocity: FraudAction = "flag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """One version of a programme's rules. It never changes."""

    qualify: Qualification
    rewards: tuple[RewardRule, ...] = ()
    fraud: FraudRules = field(default_factory=FraudRules)

    def name(self, event_type: str) -> bool:
        """Whether anything follows from events of this type."""
        return event_type == self.qualify.on or any(
            event_type == reward.on for reward in self.rewards
        )

    def window_end(self, registered_at: datetime) -> datetime | None:
        """Return until when a referral of that sign-up can qualify; None: for ever."""
        days = self.qualify.within_days
        return None if days is None else registered_at + timedelta(days=days)


class Assessable(Protocol):
    """What `assess` needs to know of a referral."""

    @property
    def state(self) -> ReferralState: ...
    @property
    def review(self) -> Review: ...
    @property
    def registered_at(self) -> datetime: ...
    @property
    def window_ends_at(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Supposed:
    """A referral that there is not, to try rules with."""

    registered_at: datetime
    window_ends_at: datetime | None
    state: ReferralState = ReferralState.PENDING
    review: Review = Review.NONE
    nth: int | None = None
    """Which of its referrer's it is, for tiers and milestones; None: the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What a referral is to be, and why."""

    state: ReferralState
    reason: ReferralReason
    cause: Event | None = None
    """The event that qualifies it, or would have done without its refunds."""


class Timing(StrEnum):
    """Where an event lies in a referral's time."""

    BEFORE_SIGN_UP = "before-sign-up"
    IN_TIME = "in-time"
    OUTSIDE_WINDOW = "outside-window"


def timing_of(event: Event, referral: Assessable) -> Timing:
    """Return whether the event counts for the referral's qualification by when it occurred."""
    if event.occurred_at < referral.registered_at - CLOCKS_DIFFER_BY:
        return Timing.BEFORE_SIGN_UP
    if referral.window_ends_at is not None and event.occurred_at >= referral.window_ends_at:
        return Timing.OUTSIDE_WINDOW
    return Timing.IN_TIME


def assess(
    rules: Rules, referral: Assessable, events: Iterable[Event], now: datetime
) -> Assessment:
    """Return what the referral is to be, given all that is known now.

    The events may come in any order, repeated, and with those that do not count: the same facts
    give the same state. No event is missed if the earliest that stands and the earliest that would
    stand without its refunds are among them.
    """
    cause, stands = _qualifying(rules.qualify, referral, events)
    if referral.review is Review.REJECTED:
        once = referral.state in _ONCE_QUALIFIED
        state = ReferralState.REVERSED if once else ReferralState.REJECTED
        return Assessment(state=state, reason=ReferralReason.REVIEW_REJECTED, cause=cause)
    if stands:
        return Assessment(
            state=ReferralState.QUALIFIED, reason=ReferralReason.QUALIFIED, cause=cause
        )
    if cause is not None:
        return Assessment(state=ReferralState.REVERSED, reason=ReferralReason.REFUNDED, cause=cause)
    over = referral.window_ends_at is not None and referral.window_ends_at <= now
    if over and referral.review is not Review.APPROVED:  # which lifts a rejection
        return Assessment(state=ReferralState.REJECTED, reason=ReferralReason.WINDOW_PASSED)
    return Assessment(state=ReferralState.PENDING, reason=ReferralReason.SIGNED_UP)


def _qualifying(
    qualify: Qualification, referral: Assessable, events: Iterable[Event]
) -> tuple[Event | None, bool]:
    """Return the event that qualifies, or would have, and whether something does."""
    if qualify.on == SIGN_UP:
        return None, True
    once = None
    for event in sorted(events, key=lambda one: (one.occurred_at, one.external_id)):
        if would_qualify(qualify, referral, event):
            if not event.is_taken_back and reaches(qualify.minimum, event.net):
                return event, True
            once = once or event
    return once, False


def would_qualify(qualify: Qualification, referral: Assessable, event: Event) -> bool:
    """Whether the event, without its refunds, makes the referral qualify."""
    return (
        event.type == qualify.on
        and timing_of(event, referral) is Timing.IN_TIME
        and (qualify.minimum is None or event.unit == qualify.minimum.unit)
        and reaches(qualify.minimum, event.amount)
    )


def reaches(minimum: Minimum | None, amount: int | None) -> bool:
    """Whether the amount is at least the minimum, if there is one."""
    return minimum is None or (amount is not None and amount >= minimum.amount)


HAVE_QUALIFIED: Final = frozenset({ReferralState.QUALIFIED, ReferralState.REWARDED})
"""What counts for the referrer's standing."""
_ONCE_QUALIFIED: Final = HAVE_QUALIFIED | {ReferralState.REVERSED}


def steps(old: ReferralState, new: Assessment) -> Sequence[tuple[ReferralState, ReferralReason]]:
    """Return the transitions that lead from one state to another.

    What qualified and was refunded before anybody heard of either passes through `qualified`, so
    that every order of the same events is told the same way.
    """
    if old is new.state or {old, new.state} <= HAVE_QUALIFIED:
        return ()
    last = new.state, new.reason
    if new.state is ReferralState.REVERSED and old not in _ONCE_QUALIFIED:
        return (ReferralState.QUALIFIED, ReferralReason.QUALIFIED), last
    return (last,)


def rules_of(document: Mapping[str, Any]) -> Rules:
    """Return the rules that a validated JSON document holds."""
    qualify = document["qualify"]
    minimum = qualify.get("minimum")
    return Rules(
        qualify=Qualification(
            on=qualify["on"],
            minimum=Minimum(**minimum) if minimum else None,
            within_days=qualify.get("within_days"),
        ),
        rewards=tuple(map(_reward_of, document.get("rewards", ()))),
        fraud=FraudRules(**document.get("fraud", {})),
    )


def in_full(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a document of rules with what applies where it is silent."""
    rules, rewards = rules_of(document), document.get("rewards", ())
    return {
        **document,
        "rewards": [
            {**one, "hold_days": rule.hold_days}
            for one, rule in zip(rewards, rules.rewards, strict=True)
        ],
        "fraud": asdict(rules.fraud),
    }


def _reward_of(document: Mapping[str, Any]) -> RewardRule:
    tiers = tuple(
        Tier(
            starts_at=tier["from"], amount=tier.get("amount"), basis_points=tier.get("basis_points")
        )
        for tier in document.get("tiers", ())
    )
    return RewardRule(**{**document, "tiers": tiers})
