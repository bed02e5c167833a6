"""Rewards: what rules give for a referral and what followed from it, given all that is known."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Literal, NamedTuple, Protocol
from uuid import UUID

from service.domain.events import Event
from service.domain.pages import Cursor
from service.domain.programmes import (
    CLOCKS_DIFFER_BY,
    HAVE_QUALIFIED,
    MILESTONE,
    QUALIFIED,
    SIGN_UP,
    Assessable,
    RewardRule,
    Rules,
    Supposed,
    assess,
)
from service.domain.referrals import ReferralReason, ReferralState, Review

WHOLE: Final = 10_000
"""Basis points."""


class RewardState(StrEnum):
    PENDING = "pending"
    AVAILABLE = "available"
    REVERSED = "reversed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """What a rule gave a participant, and how much of it has been taken back since.

    `cause_id` is what it was given for: the referral, an event, or for a milestone the participant,
    of whose milestones it is the one at `nth`. A held one waits for a review, or for a block to
    end.
    """

    reward_id: UUID
    programme_id: UUID
    version: int
    rule: str
    participant_id: UUID
    referral_id: UUID | None
    cause_id: UUID
    nth: int
    unit: str
    amount: int
    reversed: int = 0
    state: RewardState
    held: bool
    available_at: datetime
    created_at: datetime

    @property
    def to(self) -> Literal["referrer", "referee"]:
        return "referee" if self.participant_id == self.referral_id else "referrer"

    @property
    def left(self) -> int:
        """How much of it has not been taken back."""
        return self.amount - self.reversed


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedReward:
    """What a rule gives. The cause is None where it is the referral itself, or a milestone."""

    rule: RewardRule
    cause: Event | None
    nth: int
    unit: str
    amount: int
    available_at: datetime


class Ranked(Assessable, Protocol):
    """A referral whose rewards are wanted. `nth` is which of the referrer's it was that qualified;
    None: it never has."""

    @property
    def nth(self) -> int | None: ...


def wanted_rewards(
    rules: Rules, referral: Ranked, cause: Event | None, events: Iterable[Event], now: datetime
) -> list[WantedReward]:
    """Return what the rules give for the referral in its state, milestones apart.

    `cause` is the event that qualifies it, if it takes one. What is given for an event is wanted
    if the event is among `events`, in any order. Those of a rule for the first few of a type must
    be among them if any of that type is.
    """
    if referral.review is Review.REJECTED:
        return []
    ordered = sorted(
        {event.event_id: event for event in events}.values(),
        key=lambda one: (one.occurred_at, one.external_id),
    )
    wanted: list[WantedReward] = []
    for rule in rules.rewards:
        if rule.on == SIGN_UP:
            wanted += _given(rule, referral, None, referral.registered_at, now)
        elif referral.state not in HAVE_QUALIFIED or rule.on == MILESTONE:
            continue
        elif rule.on == QUALIFIED:
            wanted += _given(rule, referral, cause, qualified_at(referral, cause), now)
        else:
            counted = [event for event in ordered if counts(rule, referral, event)]
            for event in counted[: rule.times]:
                wanted += _given(rule, referral, event, event.occurred_at, now)
    return wanted


def qualified_at(referral: Assessable, cause: Event | None) -> datetime:
    """Return when that happened which qualifies the referral: the event, or its sign-up."""
    return referral.registered_at if cause is None else cause.occurred_at


def counts(rule: RewardRule, referral: Assessable, event: Event) -> bool:
    """Whether the event is one of those that the rule is for, and something is left of it."""
    return (
        concerns(rule, referral, event)
        and not event.is_taken_back
        and (rule.basis_points is None or event.unit == rule.unit)
    )


def concerns(rule: RewardRule, referral: Assessable, event: Event) -> bool:
    """Whether the rule is for such events, by type and by when it occurred."""
    since, until = span_of(rule, referral)
    return (
        event.type == rule.on
        and event.occurred_at >= since
        and (until is None or event.occurred_at < until)
    )


def span_of(rule: RewardRule, referral: Assessable) -> tuple[datetime, datetime | None]:
    """Return since when and until when events count for the rule; None: for ever."""
    days = rule.within_days
    until = None if days is None else referral.registered_at + timedelta(days=days)
    return referral.registered_at - CLOCKS_DIFFER_BY, until


def is_for_events(rule: RewardRule) -> bool:
    """Whether the rule is for each event of a type, not for the referral."""
    return rule.on not in {SIGN_UP, QUALIFIED, MILESTONE}


def may_matter(rules: Rules, event: Event) -> bool:
    """Whether the event can change what the rules give for a referral whose state stays."""
    if event.refunds is not None or event.type == rules.qualify.on:
        return any(is_for_events(rule) or rule.on == QUALIFIED for rule in rules.rewards)
    return any(rule.on == event.type for rule in rules.rewards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What rules make of a referral that there is not. Caps are left out."""

    state: ReferralState
    reason: ReferralReason
    rewards: Sequence[WantedReward]


def try_out(rules: Rules, supposed: Supposed, events: Sequence[Event], now: datetime) -> Trial:
    """Return what the service would make of a referral with these events, if it were known now."""
    assessment = assess(rules, supposed, events, now)
    state, reason = assessment.state, assessment.reason
    referral = replace(supposed, state=state, nth=supposed.nth or 1)
    rewards = wanted_rewards(rules, referral, assessment.cause, events, now)
    if state in HAVE_QUALIFIED:
        more = any(want.rule.on != SIGN_UP and want.available_at <= now for want in rewards)
        if more and referral.review is not Review.OPEN:
            state, reason = ReferralState.REWARDED, ReferralReason.HOLD_OVER
        at = qualified_at(referral, assessment.cause)
        rewards += milestones(rules, referral.nth or 1, at, now)
    return Trial(state=state, reason=reason, rewards=rewards)


def has_cap(rule: RewardRule) -> bool:
    """Whether there may be only so many live rewards of the rule."""
    return rule.max_per_referrer is not None or rule.max_total is not None


def milestones(rules: Rules, qualified: int, at: datetime, now: datetime) -> Iterator[WantedReward]:
    """Yield what the rules give a referrer at exactly so many qualified referrals."""
    for rule in rules.rewards:
        if rule.on == MILESTONE and rule.amount is not None:
            every = rule.every is not None and qualified % rule.every == 0
            if qualified == rule.at or every:
                yield WantedReward(
                    rule=rule,
                    cause=None,
                    nth=qualified,
                    unit=rule.unit,
                    amount=rule.amount,
                    available_at=_available_at(rule, at, now),
                )


def _given(
    rule: RewardRule, referral: Ranked, cause: Event | None, at: datetime, now: datetime
) -> Sequence[WantedReward]:
    amount = _amount(rule, referral.nth or 1, cause)
    if amount < 1:
        return ()
    return [
        WantedReward(
            rule=rule,
            cause=None if rule.on in {SIGN_UP, QUALIFIED} else cause,
            nth=0,
            unit=rule.unit,
            amount=amount,
            available_at=_available_at(rule, at, now),
        )
    ]


def _amount(rule: RewardRule, nth: int, cause: Event | None) -> int:
    """Return what the rule gives for the referrer's n-th referral; 0: nothing."""
    amount, basis_points = rule.amount, rule.basis_points
    for tier in rule.tiers:  # ascending
        if tier.starts_at <= nth:
            amount, basis_points = tier.amount, tier.basis_points
    if basis_points is None:
        return amount or 0
    if cause is None or cause.net is None or cause.unit != rule.unit:
        return 0
    part = cause.net * basis_points // WHOLE
    return part if rule.max_amount is None else min(part, rule.max_amount)


def _available_at(rule: RewardRule, at: datetime, now: datetime) -> datetime:
    """Return when the hold ends. Without one that is at once, even if a clock is ahead of ours."""
    return at + timedelta(days=rule.hold_days) if rule.hold_days else min(at, now)


class ListedReward(NamedTuple):  # which is made in a tenth of a dataclass' time, a hundred a page
    """A reward as lists show it."""

    reward_id: UUID
    rule: str
    version: int
    to: str
    participant_id: UUID
    referral_id: UUID | None
    unit: str
    amount: int
    reversed: int
    state: str
    held: bool
    available_at: datetime
    created_at: datetime


class RewardFilter(NamedTuple):
    """Which rewards of a participant, or of a programme, are wanted after the cursor; None: any."""

    owner_id: UUID
    state: RewardState | None
    rule: str | None
    after: Cursor | None
    discreet: bool
    """As the participant may see them."""
