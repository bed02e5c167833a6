"""The SQL of referrals."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.errors import ReferralCodeUnusable
from service.domain.pages import Cursor
from service.domain.referrals import Referral, ReferralFlag
from service.repositories.connection import LAST_ID, Repository

# The first referral of a mailbox has no flag, unless $7. If another transaction stores one of the
# same mailbox at this moment, `plain` waits for it and then finds its place taken.
INSERT: Final = """
    WITH plain AS (
        INSERT INTO referrals
               (user_id, referrer_id, code, registered_at, email_hash, mailbox_hash, flags)
        SELECT $1, $2, $3, $4, $5, $6, '{}'
         WHERE NOT ($7 OR EXISTS (
                SELECT FROM referrals WHERE referrer_id = $2 AND mailbox_hash = $6))
        ON CONFLICT DO NOTHING
        RETURNING flags
    ), flagged AS (
        INSERT INTO referrals
               (user_id, referrer_id, code, registered_at, email_hash, mailbox_hash, flags)
        SELECT $1, $2, $3, $4, $5, $6, ARRAY[$8::text]
         WHERE NOT EXISTS (SELECT FROM plain)
        ON CONFLICT (email_hash) DO NOTHING
        RETURNING flags
    )
    SELECT flags FROM plain UNION ALL SELECT flags FROM flagged
"""

DELETE: Final = """
    DELETE FROM referrals
     WHERE user_id = $1
"""

# After `place` the columns of Referral, in its order. LIMIT is one number for the whole statement:
# knowing it, PostgreSQL plans for few rows.
NEWEST_OF_SEVERAL: Final = """
    SELECT wanted.place, page.user_id, page.email, page.registered_at, page.code, page.flags
      FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[]) WITH ORDINALITY
           AS wanted (referrer_id, before, before_id, place)
     CROSS JOIN LATERAL (
            SELECT r.user_id, u.email, r.registered_at, r.code, r.flags
              FROM referrals r
              JOIN users u ON u.user_id = r.user_id
             WHERE r.referrer_id = wanted.referrer_id
               AND (r.registered_at, r.user_id)
                   < (coalesce(wanted.before, 'infinity'), wanted.before_id)
             ORDER BY r.registered_at DESC, r.user_id DESC
             LIMIT $4
           ) AS page
     ORDER BY wanted.place, page.registered_at DESC, page.user_id DESC
"""


class ReferralRepository(Repository):
    """Referrals, one statement per method."""

    async def add(
        self,
        user_id: UUID,
        referrer_id: UUID,
        code: str,
        now: datetime,
        email_hash: bytes,
        mailbox_hash: bytes,
        *,
        flagged: bool,
    ) -> Sequence[str]:
        """Store who referred the user; return the referral's flags.

        It is flagged if `flagged`, or if another referral of the referrer has the mailbox. Raises
        ReferralCodeUnusable if the email address was referred before.
        """
        flags: Sequence[str] | None = await self._connection.fetchval(
            INSERT,
            user_id,
            referrer_id,
            code,
            now,
            email_hash,
            mailbox_hash,
            flagged,
            ReferralFlag.SELF_REFERRAL,
        )
        if flags is None:
            raise ReferralCodeUnusable
        return flags

    async def delete(self, user_id: UUID) -> None:
        """Forget who referred the user."""
        await self._connection.execute(DELETE, user_id)

    async def newest_of_several(
        self, wanted: Sequence[tuple[UUID, Cursor | None]], limit: int
    ) -> list[list[Referral]]:
        """Return up to `limit` referrals of each referrer after the cursor, newest first."""
        rows = await self._connection.fetch(
            NEWEST_OF_SEVERAL,
            [referrer_id for referrer_id, _ in wanted],
            [after and after.at for _, after in wanted],
            [after.row_id if after else LAST_ID for _, after in wanted],
            limit,
        )
        found: list[list[Referral]] = [[] for _ in wanted]
        make = Referral._make  # by place: by name a page of a hundred would take 50 µs more
        for row in rows:
            found[row["place"] - 1].append(make(row[1:]))
        return found
