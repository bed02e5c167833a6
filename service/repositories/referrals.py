"""The SQL of referrals."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from service.domain.errors import AlreadyReferred
from service.domain.pages import Cursor
from service.domain.referrals import (
    Decision,
    NewReferral,
    ProgrammeReferral,
    Referral,
    ReferralFilter,
    ReferralReason,
    ReferralState,
    Review,
)
from service.repositories.connection import FIRST_ID, LAST_ID, Repository
from service.repositories.constraints import on_violation

_DECISIONS: Final = """
    INSERT INTO decisions
           (referral_id, sequence, state, review, reason, made_by, event_id, detail, decided_at)
    SELECT $1, decision.*, $2
      FROM unnest($3::integer[], $4::text[], $5::text[], $6::text[], $7::text[], $8::uuid[],
                  $9::text[]) AS decision
"""

ADD: Final = f"""
    WITH taking_part AS (
        INSERT INTO participants (participant_id, programme_id, user_id, created_at)
        SELECT user_id, $10, user_id, $2
          FROM users
         WHERE user_id = $1
        ON CONFLICT (participant_id) DO NOTHING
    ), stored AS (
        INSERT INTO referrals
               (user_id, programme_id, version, referrer_id, code, state, reason, review, flags,
                sequence, registered_at, window_ends_at, state_changed_at, email_hash,
                mailbox_hash)
        VALUES ($1, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $2, $21, $22)
    )
    {_DECISIONS}
"""

_SELECT: Final = """
    SELECT r.user_id AS referral_id, r.programme_id, p.key AS programme, r.version, r.referrer_id,
           r.code, r.state, r.reason, r.review, r.flags, r.sequence, r.nth, r.registered_at,
           r.window_ends_at
      FROM referrals r
      JOIN programmes p USING (programme_id)
"""

LOCK: Final = f"""
    {_SELECT}
     WHERE r.user_id = $1
       FOR NO KEY UPDATE OF r
"""

LOCK_FREE: Final = f"""
    {LOCK}
      SKIP LOCKED
"""

FIND: Final = f"""
    {_SELECT}
     WHERE r.user_id = $1
"""


def _page(condition: str, *, oldest: bool = False) -> str:
    """Return the statement for a page of a programme's referrals."""
    after, last, order = (">", "-infinity", "ASC") if oldest else ("<", "infinity", "DESC")
    return f"""
    {_SELECT}
     WHERE r.programme_id = $1
       AND ($2::text IS NULL OR r.review = $2)
       AND {condition}
       AND (r.registered_at, r.user_id)
           {after} (COALESCE($3::timestamptz, '{last}'), $4)
     ORDER BY r.registered_at {order}, r.user_id {order}
     LIMIT $5
"""


# With the conditions spelled out, each uses an index of its own.
_IN_STATE: Final = "r.state = $6"
_OPEN: Final = "r.review = 'open' AND ($6::text IS NULL OR r.state = $6)"
_OF_REFERRER: Final = "r.referrer_id = $7 AND ($6::text IS NULL OR r.state = $6)"
NEWEST: Final = _page("$6::text IS NULL")
NEWEST_IN_STATE: Final = _page(_IN_STATE)
NEWEST_OPEN: Final = _page(_OPEN)
NEWEST_OF_REFERRER: Final = _page(_OF_REFERRER)
OLDEST: Final = _page("$6::text IS NULL", oldest=True)
OLDEST_IN_STATE: Final = _page(_IN_STATE, oldest=True)
OLDEST_OPEN: Final = _page(_OPEN, oldest=True)
OLDEST_OF_REFERRER: Final = _page(_OF_REFERRER, oldest=True)

FIND_OVERDUE: Final = """
    SELECT user_id
      FROM referrals
     WHERE state = 'pending'
       AND review <> 'approved'
       AND window_ends_at <= $1
     ORDER BY window_ends_at
     LIMIT $2
"""

# The place of the first of its mailbox is another's, so that it no longer is of that mailbox.
LIFT_FLAGS: Final = """
    UPDATE referrals
       SET flags = '{}',
           mailbox_hash = CASE WHEN 'self-referral' = ANY (flags) THEN NULL ELSE mailbox_hash END
     WHERE user_id = $1
"""

REVIEWS: Final = """
    SELECT count(*) AS open, min(registered_at) AS oldest
      FROM referrals
     WHERE review = 'open'
"""

HAS_OPEN_REVIEW: Final = """
    SELECT EXISTS (SELECT FROM referrals WHERE referrer_id = $1 AND review = 'open')
"""

# The sequence decides between two that decide at once: the second finds no row to move.
DECIDE: Final = f"""
    WITH moved AS (
        UPDATE referrals
           SET state = $10, review = $11, reason = $12, sequence = $13,
               state_changed_at = CASE WHEN state = $10 THEN state_changed_at ELSE $2 END
         WHERE user_id = $1
           AND sequence = ($3::integer[])[1] - 1
        RETURNING user_id
    )
    {_DECISIONS}
     WHERE EXISTS (SELECT FROM moved)
    RETURNING sequence
"""

# The link never was: what was decided about it goes too.
DELETE: Final = """
    WITH undecided AS (
        DELETE FROM decisions WHERE referral_id = $1
    )
    DELETE FROM referrals
     WHERE user_id = $1
"""

# Referrers see no other flags: they would learn how to avoid them.
# After `place` the columns of Referral, in its order.
NEWEST_OF_SEVERAL: Final = """
    SELECT wanted.place, page.user_id, page.email, page.registered_at, page.code, page.flags,
           page.state, page.state_changed_at
      FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[]) WITH ORDINALITY
           AS wanted (referrer_id, before, before_id, place)
     CROSS JOIN LATERAL (
            SELECT r.user_id, u.email, r.registered_at, r.code,
                   CASE WHEN 'self-referral' = ANY (r.flags) THEN ARRAY['self-referral']
                        ELSE '{}' END AS flags,
                   r.state,
                   COALESCE(r.state_changed_at, r.registered_at) AS state_changed_at
              FROM referrals r
              LEFT JOIN users u ON u.user_id = r.user_id
             WHERE r.referrer_id = wanted.referrer_id
               AND (r.registered_at, r.user_id)
                   < (coalesce(wanted.before, 'infinity'), wanted.before_id)
             ORDER BY r.registered_at DESC, r.user_id DESC
             LIMIT $4
           ) AS page
     ORDER BY wanted.place, page.registered_at DESC, page.user_id DESC
"""


class MailboxJustReferred(Exception):
    """Another transaction has stored a referral of the same mailbox and referrer meanwhile."""


class ReferralRepository(Repository):
    """Referrals, one statement per method."""

    async def add(
        self, new: NewReferral, referral: ProgrammeReferral, decisions: Sequence[Decision]
    ) -> None:
        """Store a new referral as its first decisions have left it.

        Raises AlreadyReferred if the referee, the email address, or the referrer by the referee,
        was referred before, and MailboxJustReferred.
        """
        errors: dict[str, Callable[[], Exception]] = {
            "referrals_pkey": AlreadyReferred,
            "referrals_email_referred_once": _email_referred,
            "referrals_of_a_pair_once": _referrer_referred,
            "referrals_one_unflagged_of_a_mailbox": MailboxJustReferred,
        }
        last = decisions[-1]
        with on_violation(errors):
            await self._connection.execute(
                ADD,
                *_arguments(decisions),
                referral.programme_id,
                referral.version,
                referral.referrer_id,
                referral.code,
                last.state,
                last.reason,
                last.review,
                referral.flags,
                last.sequence,
                referral.registered_at,
                referral.window_ends_at,
                new.email_hash,
                new.mailbox_hash,
            )

    async def lock(self, referral_id: UUID) -> ProgrammeReferral | None:
        """Return a referral that nobody else decides about until the transaction ends."""
        return await self._one(_referral, LOCK, referral_id)

    async def lock_free(self, referral_id: UUID) -> ProgrammeReferral | None:
        """Like `lock`; None also while somebody else holds the lock."""
        return await self._one(_referral, LOCK_FREE, referral_id)

    async def find(self, referral_id: UUID) -> ProgrammeReferral | None:
        return await self._one(_referral, FIND, referral_id)

    async def page(
        self, programme_id: UUID, wanted: ReferralFilter, limit: int, after: Cursor | None
    ) -> list[ProgrammeReferral]:
        """Return up to `limit` of the wanted referrals of a programme, in the wanted order."""
        newest, oldest = NEWEST, OLDEST
        more: list[UUID] = []
        if wanted.referrer_id is not None:
            newest, oldest = NEWEST_OF_REFERRER, OLDEST_OF_REFERRER
            more = [wanted.referrer_id]
        elif wanted.review is Review.OPEN:
            newest, oldest = NEWEST_OPEN, OLDEST_OPEN
        elif wanted.state is not None:
            newest, oldest = NEWEST_IN_STATE, OLDEST_IN_STATE
        rows = await self._connection.fetch(
            oldest if wanted.oldest_first else newest,
            programme_id,
            wanted.review,
            after and after.at,
            after.row_id if after else FIRST_ID if wanted.oldest_first else LAST_ID,
            limit,
            wanted.state,
            *more,
        )
        return [_referral(row) for row in rows]

    async def find_overdue(self, now: datetime, limit: int) -> Sequence[UUID]:
        """Return pending referrals whose window has passed, the longest overdue first."""
        return [row["user_id"] for row in await self._connection.fetch(FIND_OVERDUE, now, limit)]

    async def lift_flags(self, referral_id: UUID) -> None:
        """Say that nothing about a referral is suspicious."""
        await self._connection.execute(LIFT_FLAGS, referral_id)

    async def reviews(self) -> tuple[int, datetime | None]:
        """Return how many referrals wait for a review, and the sign-up of the oldest."""
        row = await self._connection.fetchrow(REVIEWS)
        assert row is not None
        return row["open"], row["oldest"]

    async def has_open_review(self, referrer_id: UUID) -> bool:
        """Return whether a referral of the referrer waits for a review."""
        return bool(await self._connection.fetchval(HAS_OPEN_REVIEW, referrer_id))

    async def decide(self, decisions: Sequence[Decision]) -> bool:
        """Write decisions about one referral, and what they make of it.

        Returns False, and writes nothing, unless they follow the referral's last decision.
        """
        last = decisions[-1]
        sequence = await self._connection.fetchval(
            DECIDE, *_arguments(decisions), last.state, last.review, last.reason, last.sequence
        )
        return sequence is not None

    async def delete(self, user_id: UUID) -> None:
        """Forget who referred the user, and what was decided about it."""
        await self._connection.execute(DELETE, user_id)

    async def newest_of_several(
        self, wanted: Sequence[tuple[UUID, Cursor | None]], limit: int
    ) -> list[list[Referral]]:
        """Return up to `limit` referrals of each referrer after the cursor, newest first."""
        return await self._pages(
            len(wanted),
            Referral._make,  # by place: by name a page of a hundred would take 50 µs more
            NEWEST_OF_SEVERAL,
            [referrer_id for referrer_id, _ in wanted],
            [after and after.at for _, after in wanted],
            [after.row_id if after else LAST_ID for _, after in wanted],
            limit,
        )


def _arguments(decisions: Sequence[Decision]) -> Sequence[Any]:
    """Return the arguments of _DECISIONS. Decisions that are written at once are of one instant."""
    return (
        decisions[0].referral_id,
        decisions[0].decided_at,
        [decision.sequence for decision in decisions],
        [decision.state for decision in decisions],
        [decision.review for decision in decisions],
        [decision.reason for decision in decisions],
        [decision.made_by for decision in decisions],
        [decision.event_id for decision in decisions],
        [decision.detail for decision in decisions],
    )


def _email_referred() -> AlreadyReferred:
    return AlreadyReferred(
        "Someone with this email address has already been referred.", field="email"
    )


def _referrer_referred() -> AlreadyReferred:
    return AlreadyReferred(
        "This participant referred the owner of the code, and two participants cannot refer each "
        "other.",
        field="code",
    )


def _referral(row: Any) -> ProgrammeReferral:
    return ProgrammeReferral(
        **{
            **row,
            "state": ReferralState(row["state"]),
            "reason": ReferralReason(row["reason"]),
            "review": Review(row["review"]),
        }
    )
