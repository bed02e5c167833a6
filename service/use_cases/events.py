"""What can be done with events: what participants did, as a company reports it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from uuid6 import uuid7

from service.domain.errors import IdReused, InvalidInput
from service.domain.events import Event, Outcome, check_moment, check_refund
from service.domain.programmes import HAVE_QUALIFIED, Rules, Timing, reaches, timing_of
from service.domain.referrals import (
    Decision,
    ProgrammeReferral,
    ReferralReason,
    ReferralState,
    Review,
)
from service.domain.rewards import Reward, concerns
from service.postgresql.database import Repositories, retried
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.participants import Participants, Who
from service.use_cases.programmes import Programmes
from service.use_cases.referrals import MOST_SHOWN
from service.use_cases.shared import Shared


@dataclass(frozen=True, slots=True, kw_only=True)
class EventReport:
    """An event as a company reports it. `fingerprint` is of the body as it was sent."""

    external_id: str
    type: str
    who: Who
    fingerprint: bytes
    amount: int | None = None
    unit: str | None = None
    occurred_at: datetime | None = None
    refunds: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """An event, what it did, and its participant's referral as it is now, if there is one."""

    event: Event
    outcome: Outcome
    referral: ProgrammeReferral | None
    is_new: bool
    rewards: Sequence[Reward] = ()
    """The newest of the referral, as they now stand."""


class Events:
    """Events: reporting them, which decides what becomes of referrals in the same transaction."""

    def __init__(self, shared: Shared, programmes: Programmes, participants: Participants) -> None:
        self._database = shared.database
        self._clock = shared.clock
        self._referrals = shared.referrals
        self._programmes = programmes
        self._participants = participants

    @retried
    async def report(
        self, report: EventReport, made_by: str, once: AnswerOnce[Reported]
    ) -> Reported:
        """Store an event and decide what follows from it, or say what follows of a known one.

        A participant nobody knows is made: the event waits for its sign-up. Raises
        ProgrammeUnknown, IdReused, or InvalidInput for a refund of what it cannot be of.
        """
        now = self._clock()
        check_moment(report.occurred_at, now, "occurred_at")
        async with self._database.transaction() as repositories:
            await once.claim(repositories, now)
            participant = await self._participants.take_part(repositories, report.who, now)
            event = Event(
                event_id=uuid7(),
                programme_id=participant.programme_id,
                external_id=report.external_id,
                participant_id=participant.participant_id,
                type=report.type,
                amount=report.amount,
                unit=report.unit,
                refunds=report.refunds,
                occurred_at=report.occurred_at or now,
                received_at=now,
            )
            is_new = await repositories.events.add(event, report.fingerprint)
            if is_new:
                await _check_refund(repositories, event)
            else:
                event = await _find_repeated(repositories, event, report.fingerprint)
            referral = await repositories.referrals.lock(participant.participant_id)
            # What an erased participant does earns nothing; a refund still takes back.
            erased = participant.erased and (referral is None or event.refunds is None)
            if erased or referral is None:
                outcome = Outcome.ERASED if erased else Outcome.NO_REFERRAL
                reported = Reported(event=event, outcome=outcome, referral=None, is_new=is_new)
            else:
                reported = await self._follow(
                    repositories, event, referral, now, made_by, is_new=is_new
                )
            await once.keep(repositories, reported, None)
        return reported

    async def _follow(
        self,
        repositories: Repositories,
        event: Event,
        referral: ProgrammeReferral,
        now: datetime,
        made_by: str,
        *,
        is_new: bool,
    ) -> Reported:
        """Return what a new event does, or a known one did, and the referral as it then is."""
        known: list[Reward] | None = None  # all of the referral, unless they have to be read
        taken_back: bool | None = None
        if is_new:
            assessed = await self._referrals.assess(
                repositories, referral, now, made_by=made_by, event=event
            )
            referral, decisions, settled = assessed.referral, assessed.decisions, assessed.settled
            taken_back = settled.taken_back
            if settled.are_all:  # but for milestones
                known = [one for one in settled.granted if one.referral_id is not None][::-1]
        else:
            decisions = await repositories.decisions.of_event(referral.referral_id, event.event_id)
        rules = await self._programmes.rules(repositories, referral.programme_id, referral.version)
        if known is None and rules.rewards:
            known = await repositories.rewards.newest_of_referral(referral.referral_id, MOST_SHOWN)
        rewards = known or ()
        if taken_back is None:
            taken_back = await _has_taken_back(repositories, event, rewards)
        outcome = _outcome_of(
            event,
            decisions,
            referral,
            granted=[reward for reward in rewards if reward.created_at == event.received_at],
            taken_back=taken_back,
        )
        return Reported(
            event=event,
            outcome=outcome or _outcome_of_nothing(rules, event, referral),
            referral=referral,
            rewards=rewards,
            is_new=is_new,
        )


def _outcome_of(
    event: Event,
    decisions: Sequence[Decision],
    referral: ProgrammeReferral,
    *,
    granted: Sequence[Reward],
    taken_back: bool,
) -> Outcome | None:
    """Return what followed from an event; None: nothing."""
    reasons = {decision.reason for decision in decisions}
    states = [one.state for one in decisions if one.reason is not ReferralReason.CAP_REACHED]
    last = states[-1] if states else None
    if last in {ReferralState.REVERSED, ReferralState.REJECTED}:
        return _ENDS[last]
    if granted and referral.review is Review.OPEN:
        return Outcome.UNDER_REVIEW
    if ReferralReason.CAP_REACHED in reasons and not granted:
        return Outcome.CAP_REACHED
    if ReferralReason.QUALIFIED in reasons:
        return Outcome.QUALIFIED
    # Of a rule for the first few events, a refund makes room for the next one.
    if granted and not (taken_back and event.refunds is not None):
        return Outcome.REWARDED
    return Outcome.CHANGED if taken_back else None


_ENDS: Final = {
    ReferralState.REVERSED: Outcome.REVERSED,
    ReferralState.REJECTED: Outcome.OUTSIDE_WINDOW,
}


async def _has_taken_back(
    repositories: Repositories, refund: Event, rewards: Sequence[Reward]
) -> bool:
    """Whether something was taken back of what the refunded event gave."""
    if refund.refunds is None:
        return False
    found = await repositories.events.find(refund.programme_id, refund.refunds)
    return found is not None and any(
        reward.reversed > 0 and reward.cause_id == found[0].event_id for reward in rewards
    )


def _outcome_of_nothing(rules: Rules, event: Event, referral: ProgrammeReferral) -> Outcome:
    """Return why nothing follows from the event."""
    if not rules.name(event.type):
        return Outcome.RECORDED
    timing = timing_of(event, referral)
    if timing is Timing.BEFORE_SIGN_UP:
        return Outcome.BEFORE_SIGN_UP
    if _differs_in_unit(rules, event, referral):
        return Outcome.UNIT_DIFFERS
    if event.type != rules.qualify.on:
        return Outcome.RECORDED
    if timing is Timing.OUTSIDE_WINDOW:
        return Outcome.OUTSIDE_WINDOW
    minimum = rules.qualify.minimum
    if minimum is not None and event.unit is not None and event.unit != minimum.unit:
        return Outcome.UNIT_DIFFERS
    return Outcome.RECORDED if reaches(minimum, event.amount) else Outcome.BELOW_MINIMUM


def _differs_in_unit(rules: Rules, event: Event, referral: ProgrammeReferral) -> bool:
    """Whether a rule would give a part of the event's amount if it were in the rule's unit."""
    return referral.state in HAVE_QUALIFIED and any(
        rule.basis_points is not None
        and event.unit not in {None, rule.unit}
        and concerns(rule, referral, event)
        for rule in rules.rewards
    )


async def _check_refund(repositories: Repositories, refund: Event) -> None:
    """Raise InvalidInput if what is refunded is known, and cannot be refunded so."""
    if refund.refunds is None:
        return
    found = await repositories.events.find(refund.programme_id, refund.refunds)
    if found is None:
        return
    refunded, _ = found
    if refunded.participant_id != refund.participant_id:
        raise InvalidInput("The refunded event is another participant's.", field="refunds")
    check_refund(refunded.type, refunded.unit, refund.unit)


async def _find_repeated(repositories: Repositories, event: Event, fingerprint: bytes) -> Event:
    """Return the event that has the id; raise IdReused if it is another one."""
    found = await repositories.events.find(event.programme_id, event.external_id)
    assert found is not None
    known, first = found
    if first != fingerprint:
        raise IdReused
    return known
