"""The SQL of referral codes; that of using them is in referral_code_uses.py."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.errors import (
    EmailNotConfirmed,
    InvalidToken,
    LiveReferralCodeExists,
    ReferralCodeTaken,
)
from service.domain.pages import Cursor
from service.domain.referral_codes import (
    EndedReferralCode,
    OwnReferralCode,
    PublicReferralCode,
    ReferralCode,
    ReferralCodeState,
)
from service.repositories.connection import LAST_ID, Repository
from service.repositories.constraints import on_violation


def _planned(job_id: str, cache_prefix: str, now: str) -> str:
    """Return the part of a statement that plans what the cache has to forget of an `owner`.

    Creating and deleting a code plan their job (see repositories/jobs.py) themselves: a transaction
    around two statements would take four round trips instead of one.
    """
    return f"""planned AS (
        INSERT INTO jobs (job_id, kind, payload, created_at)
        SELECT {job_id}, 'forget', jsonb_build_array({cache_prefix}::text || email_key), {now}
          FROM owner
         WHERE email_key IS NOT NULL
    )"""


def not_withdrawn() -> str:
    """Return the condition that no block and no ended programme makes the code `c` unusable.

    Programmes are too few for PostgreSQL to estimate a join with them: if most go on, it expects
    that no code is left, and begins with all codes.
    """
    return """NOT EXISTS (
        SELECT FROM participants p
         WHERE p.participant_id = c.owner_id
           AND p.blocked_at IS NOT NULL
    )
    AND (
        SELECT g.ended_at IS NULL
          FROM programmes g
         WHERE g.programme_id = c.programme_id
    )"""


# An expired code holds neither its owner nor its name. It is ended first, because the new row waits
# for the count; so is, if $9 says so, the owner's live code. Then the owner is locked, so that no
# code is made during the account's erasure or a change of its email address.
ADD: Final = f"""
    WITH ended AS (
        UPDATE referral_codes
           SET ended_at = LEAST(expires_at, $4),
               end_reason = CASE WHEN expires_at > $4 THEN 'replaced' ELSE 'expired' END
         WHERE (owner_id = $2 OR code = $3)
           AND ended_at IS NULL
           AND (expires_at <= $4 OR ($9 AND owner_id = $2))
           AND EXISTS (
                SELECT FROM users
                 WHERE user_id = $2
                   AND erased_at IS NULL
                   AND (email_confirmed_at IS NOT NULL OR NOT $10)
               )
        RETURNING expires_at > $4 AS was_live
    ), owner AS (
        SELECT u.user_id, u.email_key
          FROM users u
         CROSS JOIN (SELECT count(*) FROM ended) AS room
         WHERE u.user_id = $2
           AND u.erased_at IS NULL
           AND (u.email_confirmed_at IS NOT NULL OR NOT $10)
           FOR KEY SHARE OF u
    ), added AS (
        INSERT INTO referral_codes
               (referral_code_id, owner_id, code, created_at, expires_at, max_uses)
        SELECT $1, user_id, $3, $4, $5, $6
          FROM owner
    ), {_planned("$7", "$8", "$4")}
    SELECT o.email_key, COALESCE((SELECT bool_or(was_live) FROM ended), false) AS replaced,
           $10 AND u.email_confirmed_at IS NULL AND u.erased_at IS NULL AS unconfirmed
      FROM users u
      LEFT JOIN owner o ON o.user_id = u.user_id
     WHERE u.user_id = $2
"""

FIND_LIVE: Final = """
    SELECT c.referral_code_id, c.owner_id, c.code, c.created_at, c.expires_at, c.max_uses,
           c.uses + COALESCE((SELECT sum(u.uses) FROM referral_code_uses u
                               WHERE u.referral_code_id = c.referral_code_id), 0)::bigint AS uses
      FROM referral_codes c
     WHERE c.owner_id = $1
       AND c.ended_at IS NULL
       AND c.expires_at > $2
"""

# Live as the contract means it: good for a sign-up.
FIND_USABLE: Final = f"""
    {FIND_LIVE}
       AND {not_withdrawn()}
"""

# Codes ended by older releases have no reason: those ended an expired code at its expiry or later,
# a replaced one at the instant its successor was made.
NEWEST_OF_OWNER: Final = """
    SELECT c.referral_code_id, c.code, c.created_at, c.expires_at, c.max_uses,
           c.uses + COALESCE((SELECT sum(u.uses) FROM referral_code_uses u
                               WHERE u.referral_code_id = c.referral_code_id), 0)::bigint AS uses,
           CASE
               WHEN c.ended_at IS NULL AND c.expires_at > $2 THEN 'live'
               WHEN c.end_reason IS NOT NULL THEN c.end_reason
               WHEN c.uses >= c.max_uses THEN 'used-up'
               WHEN c.ended_at IS NULL OR c.ended_at >= c.expires_at THEN 'expired'
               WHEN EXISTS (
                    SELECT FROM referral_codes later
                     WHERE later.owner_id = $1
                       AND later.created_at = c.ended_at
                    ) THEN 'replaced'
               ELSE 'deleted'
           END AS state,
           CASE WHEN c.ended_at IS NOT NULL OR c.expires_at <= $2
                THEN LEAST(c.ended_at, c.expires_at)
           END AS ended_at
      FROM referral_codes c
     WHERE c.owner_id = $1
       AND (c.created_at, c.referral_code_id)
           < (COALESCE($3::timestamptz, 'infinity'), $4)
     ORDER BY c.created_at DESC, c.referral_code_id DESC
     LIMIT $5
"""

FIND_LIVE_BY_EMAILS: Final = f"""
    SELECT u.email_key, c.code, c.expires_at, c.owner_id AS referrer_id
      FROM users u
      JOIN referral_codes c ON c.owner_id = u.user_id
     WHERE u.email_key = ANY (ARRAY(SELECT unnest($1::text[])))
       AND u.disabled_at IS NULL
       AND (u.email_confirmed_at IS NOT NULL OR NOT $3)
       AND c.ended_at IS NULL
       AND c.expires_at > $2
       AND {not_withdrawn()}
"""

LOCK_LIVE: Final = """
    SELECT c.referral_code_id, u.email_confirmed_at IS NOT NULL AS confirmed
      FROM referral_codes c
      JOIN users u ON u.user_id = c.owner_id
     WHERE c.owner_id = $1
       AND c.ended_at IS NULL
       FOR UPDATE OF c
"""

# The row is locked. Uses of a code that gets a limit are counted in the row from then on. The owner
# is locked, so that the email address is the one that look-ups go by at the commit.
CHANGE: Final = """
    WITH counted AS (
        DELETE FROM referral_code_uses
         WHERE referral_code_id = $1
           AND $3::integer IS NOT NULL
    ), changed AS (
        UPDATE referral_codes
           SET expires_at = $2,
               max_uses = $3,
               uses = CASE WHEN $3 IS NULL THEN uses ELSE $4 END,
               ended_at = CASE WHEN $4 >= $3 THEN $5::timestamptz END,
               end_reason = CASE WHEN $4 >= $3 THEN 'used-up' END
         WHERE referral_code_id = $1
        RETURNING owner_id
    )
    SELECT u.email_key
      FROM changed c
      JOIN users u ON u.user_id = c.owner_id
       FOR KEY SHARE OF u
"""

# `was_there` is of the statement's snapshot: a code that was there but is not ended was ended by
# another transaction, which this one waited for and which may have put a new code in its place.
# The owner is locked as in CHANGE.
END_OF_OWNER: Final = f"""
    WITH ended AS (
        UPDATE referral_codes
           SET ended_at = LEAST(expires_at, $2),
               end_reason = CASE WHEN expires_at > $2 THEN 'deleted' ELSE 'expired' END
         WHERE owner_id = $1
           AND ended_at IS NULL
        RETURNING owner_id, expires_at
    ), owner AS (
        SELECT e.expires_at, u.email_key
          FROM ended e
          JOIN users u ON u.user_id = e.owner_id
           FOR KEY SHARE OF u
    ), {_planned("$3", "$4", "$2")}
    SELECT was_there, o.expires_at IS NOT NULL AS ended,
           COALESCE(o.expires_at > $2, false) AS was_live, o.email_key AS owner_email_key
      FROM (SELECT EXISTS (SELECT FROM referral_codes WHERE owner_id = $1 AND ended_at IS NULL)
           ) AS snapshot (was_there)
      LEFT JOIN owner o ON true
"""

DISOWN_NAMES: Final = """
    UPDATE referral_code_names
       SET owner_id = NULL
     WHERE owner_id = $1
"""

# Referrals need no check of their own: each is stored with a use of the code. The next round skips
# the codes that are marked as kept.
DELETE_UNUSED: Final = """
    WITH ended AS (
        SELECT c.referral_code_id,
               c.uses > 0 OR EXISTS (
                    SELECT FROM referral_code_uses u
                     WHERE u.referral_code_id = c.referral_code_id
               ) AS used
          FROM referral_codes c
         WHERE c.ended_at <= $1
           AND NOT c.kept
           AND NOT EXISTS (
                SELECT FROM claims cl
                 WHERE cl.referral_code_id = c.referral_code_id
               )
         ORDER BY c.ended_at
         LIMIT 1000
           FOR UPDATE SKIP LOCKED
    ), kept AS (
        UPDATE referral_codes c
           SET kept = true
          FROM ended e
         WHERE c.referral_code_id = e.referral_code_id
           AND e.used
    ), deleted AS (
        DELETE FROM referral_codes c
         USING ended e
         WHERE c.referral_code_id = e.referral_code_id
           AND NOT e.used
    )
    SELECT count(*) FROM ended
"""


TAKEN: Final = {
    "referral_codes_one_live_per_owner": LiveReferralCodeExists,
    "referral_codes_live_code_unique": ReferralCodeTaken,
}


class ReferralCodeRepository(Repository):
    """Referral codes as their owners manage them: one statement per method."""

    async def add(
        self,
        code: ReferralCode,
        cache_prefix: str,
        *,
        confirmed_only: bool,
        replacing: bool = False,
    ) -> tuple[str, bool]:
        """Store a live code; return its owner's email key, and whether it replaced a live one.

        A job makes the cache forget `cache_prefix` with the email key. Raises
        LiveReferralCodeExists while the owner has another code (when `replacing`, only one that was
        added at the same moment), ReferralCodeTaken if the name is another owner's,
        EmailNotConfirmed if `confirmed_only` and the owner's email address is not confirmed,
        InvalidToken if the account is erased.
        """
        with on_violation(TAKEN):
            row = await self._connection.fetchrow(
                ADD,
                code.referral_code_id,
                code.owner_id,
                code.code,
                code.created_at,
                code.expires_at,
                code.max_uses,
                uuid7(),
                cache_prefix,
                replacing,
                confirmed_only,
            )
        assert row is not None
        if row["email_key"] is None:
            raise EmailNotConfirmed if row["unconfirmed"] else InvalidToken
        return row["email_key"], row["replaced"]

    async def find_live(self, owner_id: UUID, now: datetime) -> ReferralCode | None:
        row = await self._connection.fetchrow(FIND_LIVE, owner_id, now)
        return None if row is None else ReferralCode(**row)

    async def find_usable(self, owner_id: UUID, now: datetime) -> ReferralCode | None:
        """Like `find_live`; None also while the owner is blocked, or the programme has ended."""
        row = await self._connection.fetchrow(FIND_USABLE, owner_id, now)
        return None if row is None else ReferralCode(**row)

    async def newest_of_owner(
        self, owner_id: UUID, now: datetime, limit: int, after: Cursor | None
    ) -> list[OwnReferralCode]:
        """Return up to `limit` of the owner's codes, newest first, starting after the cursor."""
        at, last_id = (after.at, after.row_id) if after else (None, LAST_ID)
        rows = await self._connection.fetch(NEWEST_OF_OWNER, owner_id, now, at, last_id, limit)
        return [
            OwnReferralCode(**{**row, "state": ReferralCodeState(row["state"])}) for row in rows
        ]

    async def find_live_by_emails(
        self, email_keys: Sequence[str], now: datetime, *, confirmed_only: bool
    ) -> dict[str, PublicReferralCode]:
        """Return the live codes by email key.

        If `confirmed_only`, an owner whose email address is not confirmed has none.
        """
        rows = await self._connection.fetch(FIND_LIVE_BY_EMAILS, email_keys, now, confirmed_only)
        return {
            row["email_key"]: PublicReferralCode(
                code=row["code"], expires_at=row["expires_at"], referrer_id=row["referrer_id"]
            )
            for row in rows
        }

    async def lock_live(self, owner_id: UUID, *, confirmed_only: bool) -> UUID | None:
        """Lock the owner's code that has not been ended, and return its id, if there is one.

        No use of it is counted, and it does not end, until the transaction ends. Raises
        EmailNotConfirmed if `confirmed_only` and the owner's email address is not confirmed.
        """
        row = await self._connection.fetchrow(LOCK_LIVE, owner_id)
        if row is None:
            return None
        if confirmed_only and not row["confirmed"]:
            raise EmailNotConfirmed
        referral_code_id: UUID = row["referral_code_id"]
        return referral_code_id

    async def change(self, code: ReferralCode, now: datetime) -> str | None:
        """Store expiry and limit of a code that is locked; return its owner's email key.

        The code ends if no use is left.
        """
        email_key: str | None = await self._connection.fetchval(
            CHANGE, code.referral_code_id, code.expires_at, code.max_uses, code.uses, now
        )
        return email_key

    async def end_of_owner(
        self, owner_id: UUID, now: datetime, cache_prefix: str
    ) -> EndedReferralCode:
        """End the owner's code; see use_cases/locks.py for one that is replaced at this moment.

        A job makes the cache forget `cache_prefix` with the email key.
        """
        row = await self._connection.fetchrow(END_OF_OWNER, owner_id, now, uuid7(), cache_prefix)
        assert row is not None
        return EndedReferralCode(**row)

    async def disown_names(self, owner_id: UUID) -> None:
        """Forget the owner of the names, which stay taken."""
        await self._connection.execute(DISOWN_NAMES, owner_id)

    async def delete_unused(self, before: datetime) -> int:
        """Delete codes that ended before then and were never used.

        Looks at up to 1,000; returns at how many.
        """
        found: int = await self._connection.fetchval(DELETE_UNUSED, before)
        return found
