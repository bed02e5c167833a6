"""What can be done with referrals. Nothing but `Referrals.assess` and `review` changes one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal, NamedTuple
from uuid import UUID

from service.domain.clock import Clock
from service.domain.errors import NotAllowed, ReferralNotFound, UserNotFound
from service.domain.events import Event
from service.domain.pages import Cursor, Page
from service.domain.programmes import (
    CLOCKS_DIFFER_BY,
    DEFAULT_PROGRAMME,
    HAVE_QUALIFIED,
    SIGN_UP,
    Assessment,
    Programme,
    assess,
    steps,
)
from service.domain.referrals import (
    SYSTEM,
    Decision,
    NewReferral,
    ProgrammeReferral,
    Referral,
    ReferralFilter,
    ReferralReason,
    ReferralState,
    Review,
)
from service.domain.users import Role
from service.domain.webhooks import referral_created, referral_decided
from service.postgresql.batch_loader import BatchLoader
from service.postgresql.database import Database, Repositories, TryAgain, retried
from service.use_cases.programmes import Programmes
from service.use_cases.webhooks import announce

MOST_PAGES: Final = 50
"""Pages read by one statement; a page has up to a hundred rows."""
MOST_SHOWN: Final = 100
"""Of the events and the decisions of one referral the newest are shown."""
MOST_OVERDUE: Final = 100
"""Referrals of which a sweep sees at once that their window has passed."""


class _Wanted(NamedTuple):
    referrer_id: UUID
    after: Cursor | None
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferralHistory:
    """A referral with its newest events and decisions."""

    referral: ProgrammeReferral
    events: Sequence[Event]
    decisions: Sequence[Decision]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a reviewer decides about a referral, with the reason in the reviewer's own words."""

    decision: Literal["approve", "reject"]
    reason: str


class Referrals:
    """Who signed up with whose code, and what became of it."""

    def __init__(self, database: Database, programmes: Programmes, clock: Clock) -> None:
        self._database = database
        self._programmes = programmes
        self._clock = clock
        self._pages = BatchLoader[_Wanted, list[Referral]](self._read, MOST_PAGES)

    async def page(
        self, caller_id: UUID | None, referrer_id: UUID | None, limit: int, after: Cursor | None
    ) -> Page[Referral]:
        """Return a page of the referrer's referrals, newest first.

        For the referrer, admins, and clients on their own behalf (`caller_id` is None); anyone else
        gets NotAllowed, whether or not the referrer exists. `referrer_id` None is an id that no
        account can have. Admins and clients get UserNotFound.
        """
        if caller_id is None or referrer_id != caller_id:
            async with self._database.autocommit() as repositories:
                caller = caller_id and await repositories.users.find(caller_id)
                if caller_id and (not caller or caller.role is not Role.ADMIN):
                    raise NotAllowed("Referrals are shown to their referrer alone.")
                if referrer_id is None or await repositories.participants.find(referrer_id) is None:
                    raise UserNotFound
        assert referrer_id is not None
        referrals = await self._pages.find(_Wanted(referrer_id, after, limit + 1)) or []
        return Page.of(referrals, limit, lambda last: Cursor(last.registered_at, last.user_id))

    async def _read(self, wanted: Sequence[_Wanted]) -> dict[_Wanted, list[Referral]]:
        found: dict[_Wanted, list[Referral]] = {}
        for limit in {one.limit for one in wanted}:
            alike = [one for one in wanted if one.limit == limit]
            found.update(zip(alike, await self._newest_of(alike, limit), strict=True))
        return found

    async def _newest_of(self, wanted: Sequence[_Wanted], limit: int) -> list[list[Referral]]:
        places = [(one.referrer_id, one.after) for one in wanted]
        return await self._database.from_standby(
            lambda stored: stored.referrals.newest_of_several(places, limit)
        )

    async def add(
        self, repositories: Repositories, new: NewReferral, programme: Programme, now: datetime
    ) -> ProgrammeReferral:
        """Store a referral under the newest rules, and assess it, in the caller's transaction.

        Raises AlreadyReferred if the referee, or the email address, was referred before.
        """
        rules = await self._programmes.rules(
            repositories, programme.programme_id, programme.version
        )
        referral = await repositories.referrals.add(
            new, programme, rules.window_end(new.registered_at), now
        )
        announce(repositories, now, *referral_created(referral))
        return await self.assess(repositories, referral, now, made_by=new.made_by)

    async def default_programme(self, repositories: Repositories) -> Programme:
        """Return the programme that accounts take part in."""
        return await self._programmes.resolve(repositories, DEFAULT_PROGRAMME)

    async def names(
        self, repositories: Repositories, referral: ProgrammeReferral, event_type: str
    ) -> bool:
        """Whether the referral's rules mention events of this type."""
        rules = await self._programmes.rules(repositories, referral.programme_id, referral.version)
        return rules.name(event_type)

    async def assess(
        self,
        repositories: Repositories,
        referral: ProgrammeReferral,
        now: datetime,
        *,
        made_by: str = SYSTEM,
        event: Event | None = None,
    ) -> ProgrammeReferral:
        """Bring a locked referral to the state that follows from all that is known; return it.

        `event` is what has just become known.
        """
        wanted = await self._assessment(repositories, referral, now)
        for state, reason in steps(referral.state, wanted):
            decision = _next_decision(referral, now, state, reason, made_by, event=event)
            referral = await self._decide(repositories, referral, decision, event)
        return referral

    async def remove(self, repositories: Repositories, referee_id: UUID, now: datetime) -> None:
        """Forget who referred a participant, in the caller's transaction: it never was so."""
        referral = await repositories.referrals.lock(referee_id)
        if referral is None:
            return
        if referral.state in HAVE_QUALIFIED:
            await repositories.standings.move(referral.referrer_id, referral.programme_id, -1, now)
        await repositories.referrals.delete(referee_id)

    @retried
    async def review(
        self, referral_id: UUID, verdict: Verdict, made_by: str
    ) -> tuple[ReferralHistory, bool]:
        """Approve or reject a referral; return it, and whether that is news.

        Rejecting takes back what can be; approving lifts a rejection. Raises ReferralNotFound.
        """
        now = self._clock()
        approved = verdict.decision == "approve"
        review = Review.APPROVED if approved else Review.REJECTED
        reason = ReferralReason.REVIEW_APPROVED if approved else ReferralReason.REVIEW_REJECTED
        async with self._database.transaction() as repositories:
            await repositories.participants.lock(referral_id)
            referral = await repositories.referrals.lock(referral_id)
            if referral is None:
                raise ReferralNotFound
            is_new = referral.review is not review
            if is_new:
                referral = replace(referral, review=review)
                wanted = await self._assessment(repositories, referral, now)
                changes = steps(referral.state, wanted) or [(referral.state, reason)]
                for state, _ in changes:
                    decision = _next_decision(
                        referral, now, state, reason, made_by, detail=verdict.reason
                    )
                    referral = await self._decide(repositories, referral, decision)
            history = await _history(repositories, referral)
        return history, is_new

    async def find(self, referral_id: UUID) -> ReferralHistory:
        """Return a referral with what happened to it; raise ReferralNotFound."""
        async with self._database.autocommit() as repositories:
            referral = await repositories.referrals.find(referral_id)
            if referral is None:
                raise ReferralNotFound
            return await _history(repositories, referral)

    async def page_of_all(
        self, wanted: ReferralFilter, limit: int, after: Cursor | None
    ) -> Page[ProgrammeReferral]:
        """Return a page of a programme's referrals; raise ProgrammeUnknown."""
        async with self._database.autocommit() as repositories:
            programme = await self._programmes.resolve(repositories, wanted.programme)
            referrals = await repositories.referrals.page(
                programme.programme_id, wanted, limit + 1, after
            )
        return Page.of(referrals, limit, lambda last: Cursor(last.registered_at, last.referral_id))

    async def reject_overdue(self) -> int:
        """Reject pending referrals whose window has passed; return how many were looked at."""
        now = self._clock()
        async with self._database.autocommit() as repositories:
            overdue = await repositories.referrals.find_overdue(now, MOST_OVERDUE)
        for referral_id in overdue:
            await self._reject_overdue(referral_id, now)
        return len(overdue)

    @retried
    async def _reject_overdue(self, referral_id: UUID, now: datetime) -> None:
        async with self._database.transaction() as repositories:
            referral = await repositories.referrals.lock_free(referral_id)
            if referral is not None:  # otherwise an event, or another sweep, has it
                await self.assess(repositories, referral, now)

    async def _assessment(
        self, repositories: Repositories, referral: ProgrammeReferral, now: datetime
    ) -> Assessment:
        rules = await self._programmes.rules(repositories, referral.programme_id, referral.version)
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

    async def _decide(
        self,
        repositories: Repositories,
        referral: ProgrammeReferral,
        decision: Decision,
        event: Event | None = None,
    ) -> ProgrammeReferral:
        """Write a decision, count the referral in its referrer's standing, and announce it."""
        counted = decision.state in HAVE_QUALIFIED
        nth = referral.nth
        if counted is not (referral.state in HAVE_QUALIFIED):
            qualified = await repositories.standings.move(
                referral.referrer_id,
                referral.programme_id,
                1 if counted else -1,
                decision.decided_at,
            )
            nth = nth or (qualified if counted else None)
        if not await repositories.referrals.decide(decision, nth):
            raise TryAgain  # somebody else has decided: never so under its lock
        decided = replace(
            referral,
            state=decision.state,
            reason=decision.reason,
            review=decision.review,
            sequence=decision.sequence,
            nth=nth,
        )
        event_id = None if event is None else event.external_id
        announced = referral_decided(referral, decided, event_id)
        announce(repositories, decision.decided_at, *announced)
        return decided


def _next_decision(
    referral: ProgrammeReferral,
    now: datetime,
    state: ReferralState,
    reason: ReferralReason,
    made_by: str,
    *,
    event: Event | None = None,
    detail: str | None = None,
) -> Decision:
    return Decision(
        referral_id=referral.referral_id,
        sequence=referral.sequence + 1,
        state=state,
        review=referral.review,
        reason=reason,
        made_by=made_by,
        event_id=None if event is None else event.event_id,
        detail=detail,
        decided_at=now,
    )


async def _history(repositories: Repositories, referral: ProgrammeReferral) -> ReferralHistory:
    referral_id = referral.referral_id
    return ReferralHistory(
        referral=referral,
        events=await repositories.events.newest_of_participant(referral_id, MOST_SHOWN),
        decisions=await repositories.decisions.newest_of_referral(referral_id, MOST_SHOWN),
    )
