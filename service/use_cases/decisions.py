"""Deciding about a referral: its state, its referrer's standing, its rewards, in this order.

Nothing else writes a decision.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from service.domain.events import Event
from service.domain.programmes import (
    CLOCKS_DIFFER_BY,
    HAVE_QUALIFIED,
    SIGN_UP,
    Assessment,
    Rules,
    assess,
)
from service.domain.referrals import (
    Decision,
    ProgrammeReferral,
    ReferralReason,
    ReferralState,
    Review,
)
from service.domain.rewards import may_matter
from service.domain.settlement import Case
from service.domain.webhooks import referral_decided
from service.postgresql.database import Repositories, TryAgain
from service.use_cases.locks import lock_standing
from service.use_cases.rewards import Rewards, Settled
from service.use_cases.webhooks import announce


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessed:
    """A referral as it has become, by which decisions, and what was done about its rewards."""

    referral: ProgrammeReferral
    decisions: Sequence[Decision]
    settled: Settled


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Why a referral is looked at: it is new, or reviewed, or of an event, or of nothing new.

    `cause` is the event that qualifies it.
    """

    rules: Rules
    now: datetime
    made_by: str
    cause: Event | None = None
    event: Event | None = None
    detail: str | None = None
    is_new: bool = False
    reviewed: bool = False


class Decisions:
    """Carrying out what has been decided about locked referrals."""

    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards

    async def carry_out(
        self,
        repositories: Repositories,
        referral: ProgrammeReferral,
        planned: Sequence[Decision],
        change: Change,
    ) -> Assessed:
        """Write the planned decisions and what they mean for rewards, in the order of locks.

        A new referral has been stored with its decisions.
        """
        before = referral
        is_whole = bool(planned) or change.reviewed or change.is_new
        concerned = is_whole or (
            change.event is not None and may_matter(change.rules, change.event)
        )
        unwritten = [] if change.is_new else list(planned)
        if change.reviewed and unwritten:  # before it is looked at what the review holds
            await _write(repositories, unwritten)
            unwritten = []
        referral, standing = await _follow(repositories, referral, planned)
        if change.reviewed:
            await lock_standing(
                repositories, referral.referrer_id, referral.programme_id, change.now
            )
            await repositories.rewards.hold_of_referral(referral.referral_id)
        # A new referral's standing is locked already, and it has no rewards.
        if change.reviewed or (change.is_new and referral.review is Review.OPEN):
            await repositories.rewards.hold_milestones(referral.referrer_id)
        rose = _counts(referral) and not _counts(before)
        fell = _counts(before) and not _counts(referral)
        settled = Settled(rewarded=referral.state is ReferralState.REWARDED)
        if fell or (change.rules.rewards and (concerned or change.event is None)):
            case = Case(
                rules=change.rules,
                referral=referral,
                cause=change.cause,
                event=change.event,
                now=change.now,
                made_by=change.made_by,
                whole=is_whole,
                is_new=change.is_new,
                first=before.nth is None,
                standing=standing if rose or fell else None,
                rose=rose,
            )
            settled = await self._rewards.settle(repositories, case)
        further = list(_consequences(referral, change, settled))
        if unwritten or further:
            await _write(repositories, [*unwritten, *further])
        referral, _ = await _follow(repositories, referral, further)
        return Assessed(referral=referral, decisions=[*planned, *further], settled=settled)


async def _write(repositories: Repositories, decisions: Sequence[Decision]) -> None:
    if not await repositories.referrals.decide(decisions):
        raise TryAgain  # somebody else has decided: never so under its lock


async def _follow(
    repositories: Repositories, referral: ProgrammeReferral, decisions: Sequence[Decision]
) -> tuple[ProgrammeReferral, int | None]:
    """Count the referral in its referrer's standing as decided, and announce what was decided.

    Returns the referral, and how many of the referrer's have qualified if that has changed.
    """
    standing = None
    for decision in decisions:
        counted = decision.state in HAVE_QUALIFIED
        nth = referral.nth
        if counted is not _counts(referral):
            standing = await repositories.standings.move(
                referral.referrer_id,
                referral.programme_id,
                1 if counted else -1,
                decision.decided_at,
                referral.referral_id,
            )
            nth = nth or standing
        decided = replace(
            referral,
            state=decision.state,
            reason=decision.reason,
            review=decision.review,
            sequence=decision.sequence,
            nth=nth,
        )
        told = referral_decided(referral, decided, decision.event_external_id)
        announce(repositories, decision.decided_at, *told)
        referral = decided
    return referral, standing


async def assessment_of(
    repositories: Repositories, rules: Rules, referral: ProgrammeReferral, now: datetime
) -> Assessment:
    qualify = rules.qualify
    events: Sequence[Event] = ()
    if qualify.on != SIGN_UP:
        events = await repositories.events.that_decide(
            referral.referral_id,
            qualify.on,
            referral.registered_at - CLOCKS_DIFFER_BY,
            referral.window_ends_at,
            qualify.minimum,
        )
    return assess(rules, referral, events, now)


def _counts(referral: ProgrammeReferral) -> bool:
    """Whether it counts for its referrer's standing."""
    return referral.state in HAVE_QUALIFIED


def _consequences(
    referral: ProgrammeReferral, change: Change, settled: Settled
) -> Iterator[Decision]:
    """Yield the decisions that follow from what was given, refused or taken back."""
    for rule, event_id in settled.refused:
        state, reason = referral.state, ReferralReason.CAP_REACHED
        decision = next_decision(referral, change, state, reason)
        decision = replace(decision, event_id=event_id, detail=rule)
        referral = replace(referral, sequence=decision.sequence)
        yield decision
    if settled.rewarded and referral.state is ReferralState.QUALIFIED:
        yield next_decision(referral, change, ReferralState.REWARDED, ReferralReason.HOLD_OVER)
    if not settled.rewarded and referral.state is ReferralState.REWARDED:
        yield next_decision(referral, change, ReferralState.QUALIFIED, ReferralReason.REFUNDED)


def plan(
    referral: ProgrammeReferral,
    change: Change,
    steps: Sequence[tuple[ReferralState, ReferralReason]],
) -> Sequence[Decision]:
    """Return the decisions that lead the referral through these states."""
    decisions = []
    for state, reason in steps:
        decision = next_decision(referral, change, state, reason)
        referral = replace(referral, sequence=decision.sequence)
        decisions.append(decision)
    return decisions


def next_decision(
    referral: ProgrammeReferral, change: Change, state: ReferralState, reason: ReferralReason
) -> Decision:
    led = change.event or (change.cause if reason is ReferralReason.QUALIFIED else None)
    return Decision(
        referral_id=referral.referral_id,
        sequence=referral.sequence + 1,
        state=state,
        review=referral.review,
        reason=reason,
        made_by=change.made_by,
        event_id=None if led is None else led.event_id,
        event_external_id=None if led is None else led.external_id,
        detail=change.detail,
        decided_at=change.now,
    )
