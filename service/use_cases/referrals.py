"""What can be done with referrals. Nothing but `Referrals.assess` and `review` changes one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from service.domain.clock import Clock
from service.domain.errors import NotAllowed, ReferralNotFound, UserNotFound
from service.domain.events import Event
from service.domain.fraud import Suspicions, judge
from service.domain.pages import Cursor, Page
from service.domain.programmes import steps
from service.domain.referrals import (
    SYSTEM,
    Decision,
    NewReferral,
    ProgrammeReferral,
    Referral,
    ReferralFilter,
    ReferralFlag,
    ReferralReason,
    ReferralState,
    Review,
)
from service.domain.users import Role
from service.domain.webhooks import referral_created
from service.postgresql.batch_loader import PageLoader
from service.postgresql.database import Database, Repositories, TryAgain, retried
from service.repositories.referrals import MailboxJustReferred
from service.use_cases.decisions import (
    Assessed,
    Change,
    Decisions,
    assessment_of,
    next_decision,
    plan,
)
from service.use_cases.locks import lock_standing
from service.use_cases.programmes import Programmes
from service.use_cases.webhooks import announce

MOST_SHOWN: Final = 100
"""Of the events and the decisions of one referral the newest are shown."""
MOST_OVERDUE: Final = 100
"""Referrals of which a sweep sees at once that their window has passed."""


_OF_REVIEWS: Final = frozenset(
    {ReferralReason.REVIEW_APPROVED, *(ReferralReason(flag.value) for flag in ReferralFlag)}
)
"""Reasons that tell what was suspicious, or that something was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferralHistory:
    """A referral with its newest events and decisions."""

    referral: ProgrammeReferral
    events: Sequence[Event]
    decisions: Sequence[Decision]

    def without_suspicions(self) -> "ReferralHistory":
        """Return what its referee may know: who is told what was noticed learns to avoid it."""
        shown: list[Decision] = []
        hidden, state = 0, ReferralState.PENDING
        for decision in reversed(self.decisions):
            if decision.reason in _OF_REVIEWS and decision.state is state:
                hidden += 1
                continue
            reason = decision.reason
            if reason in _OF_REVIEWS and decision.state is ReferralState.REJECTED:
                reason = ReferralReason.REVIEW_REJECTED
            state = decision.state
            shown.append(replace(decision, sequence=decision.sequence - hidden, reason=reason))
        reason = shown[-1].reason if shown else ReferralReason.SIGNED_UP
        referral = replace(
            self.referral, sequence=self.referral.sequence - hidden, reason=reason, flags=()
        )
        return replace(self, referral=referral, decisions=shown[::-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a reviewer decides about a referral, with the reason in the reviewer's own words."""

    decision: Literal["approve", "reject"]
    reason: str


class Referrals:
    """Who signed up with whose code, and what became of it."""

    def __init__(
        self, database: Database, programmes: Programmes, decisions: Decisions, clock: Clock
    ) -> None:
        self._database = database
        self._programmes = programmes
        self._decisions = decisions
        self._clock = clock
        self._pages = PageLoader[tuple[UUID, Cursor | None], Referral](
            lambda places, limit: database.from_standby(
                lambda stored: stored.referrals.newest_of_several(places, limit)
            )
        )

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
                    raise NotAllowed("Only the referrer and admins can see these referrals.")
                if referrer_id is None or await repositories.participants.find(referrer_id) is None:
                    raise UserNotFound
        assert referrer_id is not None
        referrals = await self._pages.find((referrer_id, after), limit + 1)
        return Page.of(referrals, limit, lambda last: Cursor(last.registered_at, last.user_id))

    async def add(
        self, repositories: Repositories, new: NewReferral, now: datetime
    ) -> ProgrammeReferral:
        """Store a referral and assess it, in the caller's transaction.

        Raises AlreadyReferred if the referee, or the email address, was referred before.
        """
        taken = new.taken
        rules = await self._programmes.rules(repositories, taken.programme_id, taken.version)
        if not taken.is_standing_locked:
            await lock_standing(repositories, taken.owner_id, taken.programme_id, now)
        suspicions = await repositories.signals.compare(new, now)
        if suspicions is None or rules.fraud.self_referral == "off":
            new = replace(new, mailbox_hash=None)
        verdict = judge(rules.fraud, suspicions or Suspicions())
        referral = new.begin(verdict.flags, rules.window_end(new.registered_at))
        change = Change(rules=rules, now=now, made_by=new.made_by, is_new=True)
        decisions = [next_decision(referral, change, referral.state, referral.reason)]
        begun = referral = replace(referral, sequence=1)
        if verdict.review is not None and verdict.reason is not None:
            rejected = verdict.review is Review.REJECTED
            state = ReferralState.REJECTED if rejected else referral.state
            referral = replace(referral, state=state, reason=verdict.reason, review=verdict.review)
            decision = next_decision(referral, change, state, verdict.reason)
            decisions.append(replace(decision, made_by=SYSTEM))
            referral = replace(referral, sequence=decision.sequence)
        wanted = await assessment_of(repositories, rules, referral, now)
        change = replace(change, cause=wanted.cause)
        planned = plan(referral, change, steps(referral.state, wanted))
        try:
            await repositories.referrals.add(new, referral, [*decisions, *planned])
        except MailboxJustReferred as error:
            raise TryAgain from error  # and find it
        announce(repositories, now, *referral_created(begun, referral))
        return (await self._decisions.carry_out(repositories, referral, planned, change)).referral

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
    ) -> Assessed:
        """Bring a locked referral to the state that follows from all that is known; return that.

        `event` is what has just become known. What rules give for it is given, or taken back.
        """
        rules = await self._programmes.rules(repositories, referral.programme_id, referral.version)
        wanted = await assessment_of(repositories, rules, referral, now)
        change = Change(rules=rules, cause=wanted.cause, event=event, now=now, made_by=made_by)
        planned = plan(referral, change, steps(referral.state, wanted))
        return await self._decisions.carry_out(repositories, referral, planned, change)

    async def remove(self, repositories: Repositories, referee_id: UUID, now: datetime) -> None:
        """Forget who referred a participant, in the caller's transaction: it never was so."""
        referral = await repositories.referrals.lock(referee_id)
        if referral is None:
            return
        rules = await self._programmes.rules(repositories, referral.programme_id, referral.version)
        gone = ReferralState.REJECTED, ReferralReason.REVIEW_REJECTED
        change = Change(rules=rules, now=now, made_by=SYSTEM, reviewed=True)
        refused = replace(referral, review=Review.REJECTED)
        planned = plan(refused, change, [gone])
        await self._decisions.carry_out(repositories, refused, planned, change)
        await repositories.referrals.delete(referee_id)

    @retried
    async def review(
        self, referral_id: UUID, verdict: Verdict, made_by: str
    ) -> tuple[ReferralHistory, bool]:
        """Approve or reject a referral; return it, and whether that is news.

        Rejecting takes back what can be; approving lifts a rejection, and flags. Raises
        ReferralNotFound.
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
                if approved and referral.flags:
                    await repositories.referrals.lift_flags(referral_id)
                    referral = replace(referral, flags=())
                rules = await self._programmes.rules(
                    repositories, referral.programme_id, referral.version
                )
                wanted = await assessment_of(repositories, rules, referral, now)
                changes = steps(referral.state, wanted) or [(referral.state, reason)]
                change = Change(
                    rules=rules,
                    cause=wanted.cause,
                    now=now,
                    made_by=made_by,
                    detail=verdict.reason,
                    reviewed=True,
                )
                planned = plan(referral, change, [(state, reason) for state, _ in changes])
                assessed = await self._decisions.carry_out(repositories, referral, planned, change)
                referral = assessed.referral
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

    async def reviews(self) -> tuple[int, datetime | None]:
        """Return how many referrals wait for a review, and the sign-up of the oldest."""
        async with self._database.autocommit() as repositories:
            return await repositories.referrals.reviews()

    async def reject_overdue(self) -> int:
        """Reject pending referrals whose window has passed; return how many were looked at."""
        now = self._clock()
        async with self._database.autocommit() as repositories:
            overdue = await repositories.referrals.find_overdue(now, MOST_OVERDUE)
        for referral_id in overdue:
            await self.follow_time(referral_id, now)
        return len(overdue)

    @retried
    async def follow_time(self, referral_id: UUID, now: datetime) -> None:
        """Bring a referral to the state that time alone has led to, unless it is locked."""
        async with self._database.transaction() as repositories:
            referral = await repositories.referrals.lock_free(referral_id)
            if referral is not None:  # otherwise an event, or another sweep, has it
                await self.assess(repositories, referral, now)


async def _history(repositories: Repositories, referral: ProgrammeReferral) -> ReferralHistory:
    referral_id = referral.referral_id
    return ReferralHistory(
        referral=referral,
        events=await repositories.events.newest_of_participant(referral_id, MOST_SHOWN),
        decisions=await repositories.decisions.newest_of_referral(referral_id, MOST_SHOWN),
    )
