"""What can be done with events: what participants did, as a company reports it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from uuid6 import uuid7

from service.domain.errors import IdReused, InvalidInput
from service.domain.events import Event, Outcome, check_moment, check_refund
from service.domain.programmes import Rules, Timing, reaches, timing_of
from service.domain.referrals import ProgrammeReferral, ReferralState
from service.postgresql.database import Repositories, retried
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.participants import Participants, Who
from service.use_cases.programmes import Programmes
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
            outcome, referral = await self._follow(
                repositories, event, referral, now, made_by, erased=participant.erased, new=is_new
            )
            reported = Reported(event=event, outcome=outcome, referral=referral, is_new=is_new)
            await once.keep(repositories, reported, None)
        return reported

    async def _follow(
        self,
        repositories: Repositories,
        event: Event,
        referral: ProgrammeReferral | None,
        now: datetime,
        made_by: str,
        *,
        erased: bool,
        new: bool,
    ) -> tuple[Outcome, ProgrammeReferral | None]:
        """Return what the event does, or did, and the referral as it then is."""
        if erased and (referral is None or event.refunds is None):
            return Outcome.ERASED, None
        if referral is None:
            return Outcome.NO_REFERRAL, None
        if new:
            before = referral.sequence
            referral = await self._referrals.assess(
                repositories, referral, now, made_by=made_by, event=event
            )
            became = referral.state if referral.sequence > before else None
        else:
            became = await repositories.decisions.find_state_after(
                referral.referral_id, event.event_id
            )
        if became is not None:
            return _OUTCOME_OF[became], referral
        rules = await self._programmes.rules(repositories, referral.programme_id, referral.version)
        return _outcome_of_nothing(rules, event, referral), referral


_OUTCOME_OF: Final = {
    ReferralState.PENDING: Outcome.RECORDED,
    ReferralState.QUALIFIED: Outcome.QUALIFIED,
    ReferralState.REWARDED: Outcome.REWARDED,
    ReferralState.REJECTED: Outcome.OUTSIDE_WINDOW,
    ReferralState.REVERSED: Outcome.REVERSED,
}


def _outcome_of_nothing(rules: Rules, event: Event, referral: ProgrammeReferral) -> Outcome:
    """Return why nothing follows from the event."""
    if not rules.name(event.type):
        return Outcome.RECORDED
    timing = timing_of(event, referral)
    if timing is Timing.BEFORE_SIGN_UP:
        return Outcome.BEFORE_SIGN_UP
    if event.type != rules.qualify.on:
        return Outcome.RECORDED
    if timing is Timing.OUTSIDE_WINDOW:
        return Outcome.OUTSIDE_WINDOW
    minimum = rules.qualify.minimum
    if minimum is not None and event.unit is not None and event.unit != minimum.unit:
        return Outcome.UNIT_DIFFERS
    return Outcome.RECORDED if reaches(minimum, event.amount) else Outcome.BELOW_MINIMUM


async def _check_refund(repositories: Repositories, refund: Event) -> None:
    """Raise InvalidInput if what is refunded is known, and cannot be refunded so."""
    if refund.refunds is None:
        return
    found = await repositories.events.find(refund.programme_id, refund.refunds)
    if found is None:
        return
    refunded, _ = found
    if refunded.participant_id != refund.participant_id:
        raise InvalidInput("This is another participant's event.", field="refunds")
    check_refund(refunded.type, refunded.unit, refund.unit)


async def _find_repeated(repositories: Repositories, event: Event, fingerprint: bytes) -> Event:
    """Return the event that has the id; raise IdReused if it is another one."""
    found = await repositories.events.find(event.programme_id, event.external_id)
    assert found is not None
    known, first = found
    if first != fingerprint:
        raise IdReused
    return known
