"""The SQL of referral codes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from asyncpg import SerializationError
from uuid6 import uuid7

from service.domain.errors import (
    EmailNotConfirmed,
    InvalidToken,
    LiveReferralCodeExists,
    ReferralCodeTaken,
)
from service.domain.pages import Cursor
from service.domain.referral_codes import (
    OwnReferralCode,
    PublicReferralCode,
    ReferralCode,
    ReferralCodeState,
    TakenReferralCode,
)
from service.repositories.connection import Connection
from service.repositories.constraints import on_violation

# What has expired holds neither its owner nor its name. It is ended first, because the new row
# waits for the count; so is, where $9 says so, the owner's live code. Then the owner is locked, so
# that a code is not made beside the account's erasure or a change of its email address. The job is
# what use_cases/cache_invalidation.py plans for other writes.
ADD: Final = """
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
    ), planned AS (
        INSERT INTO jobs (job_id, kind, payload, created_at)
        SELECT $7, 'forget', jsonb_build_array($8::text || email_key), $4
          FROM owner
    )
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

# The release before this one stores no reason. An expired code it has ended at its expiry or
# later, a replaced one at the instant at which the next one was made.
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
           < (COALESCE($3::timestamptz, 'infinity'), COALESCE($4::uuid, $6))
     ORDER BY c.created_at DESC, c.referral_code_id DESC
     LIMIT $5
"""

FIND_LIVE_BY_EMAILS: Final = """
    SELECT u.email_key, c.code, c.expires_at, c.owner_id AS referrer_id
      FROM users u
      JOIN referral_codes c ON c.owner_id = u.user_id
     WHERE u.email_key = ANY ($1)
       AND u.disabled_at IS NULL
       AND (u.email_confirmed_at IS NOT NULL OR NOT $3)
       AND c.ended_at IS NULL
       AND c.expires_at > $2
"""

# As it was typed, or otherwise what the owner of its name has now: look-alikes are folded as the
# trigger on referral_codes does it. Two owners may have live codes that look alike, from before
# names had owners: each is found by its own spelling, any other one leads to the name's owner.
FIND_USABLE: Final = """
    SELECT c.referral_code_id, c.owner_id, c.code, c.expires_at
      FROM referral_codes c
      JOIN users u ON u.user_id = c.owner_id
     WHERE c.referral_code_id = COALESCE(
                (SELECT exact.referral_code_id
                   FROM referral_codes exact
                  WHERE exact.code = $1
                    AND exact.ended_at IS NULL
                    AND exact.expires_at > $2),
                (SELECT alike.referral_code_id
                   FROM referral_code_names n
                   JOIN referral_codes alike ON alike.owner_id = n.owner_id
                  WHERE n.name = translate($1, 'OIL', '011')
                    AND alike.ended_at IS NULL
                    AND translate(alike.code, 'OIL', '011') = n.name)
           )
       AND c.ended_at IS NULL
       AND c.expires_at > $2
       AND u.disabled_at IS NULL
       AND u.erased_at IS NULL
       AND (u.email_confirmed_at IS NOT NULL OR NOT $3)
"""

LOCK_OWNER: Final = """
    SELECT user_id
      FROM users
     WHERE user_id = $1
       FOR NO KEY UPDATE
"""

LOCK_LIVE: Final = """
    SELECT c.referral_code_id, u.email_confirmed_at IS NOT NULL AS confirmed
      FROM referral_codes c
      JOIN users u ON u.user_id = c.owner_id
     WHERE c.owner_id = $1
       AND c.ended_at IS NULL
       FOR UPDATE OF c
"""

# Of a row that is locked. Uses that get a limit are counted in the row from then on.
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
    ), owner AS (
        SELECT u.email_key
          FROM changed c
          JOIN users u ON u.user_id = c.owner_id
           FOR KEY SHARE OF u
    ), planned AS (
        INSERT INTO jobs (job_id, kind, payload, created_at)
        SELECT $6, 'forget', jsonb_build_array($7::text || email_key), $5
          FROM owner
         WHERE email_key IS NOT NULL
    )
    SELECT email_key
      FROM owner
"""

# `was_there` is of the statement's snapshot: a code that is there, but is not ended, was ended by
# another transaction first, for which this one waited. That may have put a new code in its place,
# which the statement does not see. The owner is locked, so that the email address is the one that
# look-ups go by when this is committed.
END_OF_OWNER: Final = """
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
    ), planned AS (
        INSERT INTO jobs (job_id, kind, payload, created_at)
        SELECT $3, 'forget', jsonb_build_array($4::text || email_key), $2
          FROM owner
         WHERE email_key IS NOT NULL
    )
    SELECT o.expires_at, o.email_key, was_there
      FROM (SELECT EXISTS (SELECT FROM referral_codes WHERE owner_id = $1 AND ended_at IS NULL)
           ) AS snapshot (was_there)
      LEFT JOIN owner o ON true
"""

DISOWN_NAMES: Final = """
    UPDATE referral_code_names
       SET owner_id = NULL
     WHERE owner_id = $1
"""

# Two ways to take a code. With `max_uses` the row is updated, so that registrations queue and the
# limit is exact. Without, they share the row: they wait for nobody, only a deletion waits for them.
# The owner is locked for the email address, as in END_OF_OWNER.
TAKE: Final = """
    WITH counted AS (
        UPDATE referral_codes c
           SET uses = c.uses + 1,
               ended_at = CASE WHEN c.uses + 1 >= c.max_uses THEN $2::timestamptz END,
               end_reason = CASE WHEN c.uses + 1 >= c.max_uses THEN 'used-up' END
          FROM users u
         WHERE c.code = $1
           AND c.ended_at IS NULL
           AND c.expires_at > $2
           AND c.max_uses IS NOT NULL
           AND u.user_id = c.owner_id
           AND u.disabled_at IS NULL
           AND (u.email_confirmed_at IS NOT NULL OR NOT $3)
        RETURNING c.referral_code_id, c.owner_id, c.code, c.max_uses, c.ended_at
    ), shared AS (
        SELECT referral_code_id, owner_id, code, max_uses, ended_at
          FROM referral_codes
         WHERE code = $1
           AND ended_at IS NULL
           AND expires_at > $2
           AND max_uses IS NULL
           FOR SHARE
    ), taken AS (
        SELECT * FROM counted UNION ALL SELECT * FROM shared
    )
    SELECT t.referral_code_id, t.owner_id, u.email_key, t.code, t.max_uses,
           t.ended_at IS NOT NULL AS used_up
      FROM taken t
      JOIN users u ON u.user_id = t.owner_id
     WHERE u.disabled_at IS NULL
       AND u.erased_at IS NULL
       AND (u.email_confirmed_at IS NOT NULL OR NOT $3)
       FOR KEY SHARE OF u
"""

# The same two ways. A code that has died stays as dead as it is.
TAKE_BY_ID: Final = """
    WITH counted AS (
        UPDATE referral_codes c
           SET uses = c.uses + 1,
               ended_at = CASE WHEN c.ended_at IS NULL AND c.expires_at > $2
                                AND c.uses + 1 >= c.max_uses
                               THEN $2::timestamptz ELSE c.ended_at END,
               end_reason = CASE WHEN c.ended_at IS NULL AND c.expires_at > $2
                                  AND c.uses + 1 >= c.max_uses
                                 THEN 'used-up' ELSE c.end_reason END
          FROM users u
         WHERE c.referral_code_id = $1
           AND c.uses < c.max_uses
           AND u.user_id = c.owner_id
           AND u.erased_at IS NULL
        RETURNING c.referral_code_id, c.owner_id, c.code, c.max_uses, c.uses
    ), shared AS (
        SELECT referral_code_id, owner_id, code, max_uses, uses
          FROM referral_codes
         WHERE referral_code_id = $1
           AND max_uses IS NULL
           FOR SHARE
    ), taken AS (
        SELECT * FROM counted UNION ALL SELECT * FROM shared
    )
    SELECT t.referral_code_id, t.owner_id, u.email_key, t.code, t.max_uses,
           COALESCE(t.uses >= t.max_uses, false) AS used_up
      FROM taken t
      JOIN users u ON u.user_id = t.owner_id
     WHERE u.erased_at IS NULL
       FOR KEY SHARE OF u
"""

# Whether there is a use left of a code, dead or alive.
IS_LEFT: Final = """
    SELECT EXISTS (
        SELECT FROM referral_codes c
          JOIN users u ON u.user_id = c.owner_id
         WHERE c.referral_code_id = $1
           AND (c.max_uses IS NULL OR c.uses < c.max_uses)
           AND u.erased_at IS NULL
    )
"""

COUNT_USE: Final = """
    INSERT INTO referral_code_uses (referral_code_id, slot, uses)
    VALUES ($1, $2, 1)
    ON CONFLICT (referral_code_id, slot)
    DO UPDATE SET uses = referral_code_uses.uses + 1
"""

# A referral needs no look of its own: it is stored with a use of the code. What was used is marked,
# so that the next round does not come by it again.
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
_LAST_ID: Final = UUID(int=2**128 - 1)


class ReferralCodeRepository:
    """Referral codes, one statement a method."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(
        self, code: ReferralCode, key: str, *, confirmed_only: bool, replacing: bool = False
    ) -> tuple[str, bool]:
        """Store a live code; return its owner's email key, and whether it replaced a live one.

        `key` is how the cache key begins that a job is to forget. Raises LiveReferralCodeExists
        while its owner holds another (if it is `replacing`, only if that one has just been added),
        ReferralCodeTaken if the name is another owner's, EmailNotConfirmed with `confirmed_only`
        if the owner's email address is not confirmed, InvalidToken if the account is erased.
        """
        errors = {
            "referral_codes_one_live_per_owner": LiveReferralCodeExists,
            "referral_codes_live_code_unique": ReferralCodeTaken,
        }
        with on_violation(errors):
            row = await self._connection.fetchrow(
                ADD,
                code.referral_code_id,
                code.owner_id,
                code.code,
                code.created_at,
                code.expires_at,
                code.max_uses,
                uuid7(),
                key,
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

    async def newest_of_owner(
        self, owner_id: UUID, now: datetime, limit: int, behind: Cursor | None
    ) -> list[OwnReferralCode]:
        """Return up to `limit` of the owner's codes, newest first, those behind the cursor."""
        rows = await self._connection.fetch(
            NEWEST_OF_OWNER,
            owner_id,
            now,
            behind and behind.at,
            behind and behind.row_id,
            limit,
            _LAST_ID,
        )
        return [
            OwnReferralCode(**{**row, "state": ReferralCodeState(row["state"])}) for row in rows
        ]

    async def find_live_by_emails(
        self, email_keys: Sequence[str], now: datetime, *, confirmed_only: bool
    ) -> dict[str, PublicReferralCode]:
        """Return the live codes of those who have one, by email key.

        With `confirmed_only` those whose email address is not confirmed have none.
        """
        rows = await self._connection.fetch(FIND_LIVE_BY_EMAILS, email_keys, now, confirmed_only)
        return {
            row["email_key"]: PublicReferralCode(
                code=row["code"], expires_at=row["expires_at"], referrer_id=row["referrer_id"]
            )
            for row in rows
        }

    async def find_usable(self, code: str, now: datetime, *, confirmed_only: bool) -> UUID | None:
        """Return the id of the live code with which a person who types `code` can register now."""
        row = await self._connection.fetchrow(FIND_USABLE, code, now, confirmed_only)
        return None if row is None else row["referral_code_id"]

    async def find_public(
        self, code: str, now: datetime, *, confirmed_only: bool
    ) -> PublicReferralCode | None:
        """Return the code that `find_usable` finds, as anyone may see it."""
        row = await self._connection.fetchrow(FIND_USABLE, code, now, confirmed_only)
        return (
            None
            if row is None
            else PublicReferralCode(
                code=row["code"], expires_at=row["expires_at"], referrer_id=row["owner_id"]
            )
        )

    async def lock_owner(self, owner_id: UUID) -> None:
        """Let one replacement of an owner's code at a time go on until it commits."""
        await self._connection.fetchval(LOCK_OWNER, owner_id)

    async def lock_live(self, owner_id: UUID, *, confirmed_only: bool) -> UUID | None:
        """Lock the owner's code that has not been ended, and return its id, if there is one.

        Nobody counts a use of it, or ends it, until the transaction ends. Raises EmailNotConfirmed
        with `confirmed_only` if the owner's email address is not confirmed.
        """
        row = await self._connection.fetchrow(LOCK_LIVE, owner_id)
        if row is None:
            return None
        if confirmed_only and not row["confirmed"]:
            raise EmailNotConfirmed
        referral_code_id: UUID = row["referral_code_id"]
        return referral_code_id

    async def change(self, code: ReferralCode, now: datetime, key: str) -> str | None:
        """Store expiry and limit of a code that is locked; return its owner's email key.

        The code ends if no use is left. `key` is how the cache key begins that a job is to forget.
        """
        email_key: str | None = await self._connection.fetchval(
            CHANGE,
            code.referral_code_id,
            code.expires_at,
            code.max_uses,
            code.uses,
            now,
            uuid7(),
            key,
        )
        return email_key

    async def end_of_owner(
        self, owner_id: UUID, now: datetime, key: str
    ) -> tuple[bool, str | None] | None:
        """End the owner's code; return whether it was live until now, and the email key.

        `key` is how the cache key begins that a job is to forget. None if there is nothing to end.
        """
        while True:
            row = await self._connection.fetchrow(END_OF_OWNER, owner_id, now, uuid7(), key)
            assert row is not None
            if row["expires_at"] is not None:
                return row["expires_at"] > now, row["email_key"]
            if not row["was_there"]:
                return None

    async def disown_names(self, owner_id: UUID) -> None:
        """Forget whose the owner's names were: they stay taken."""
        await self._connection.execute(DISOWN_NAMES, owner_id)

    async def take(
        self, code: str, now: datetime, *, confirmed_only: bool
    ) -> TakenReferralCode | None:
        """Count one use of a live code towards `max_uses`; return it, or None if none lives.

        With `confirmed_only` no code lives whose owner's email address is not confirmed.
        """
        row = await self._connection.fetchrow(TAKE, code, now, confirmed_only)
        if row is None:
            found = await self._connection.fetchrow(FIND_USABLE, code, now, confirmed_only)
            if found is None:
                return None
            if found["code"] != code:  # it was typed with a look-alike
                row = await self._connection.fetchrow(TAKE, found["code"], now, confirmed_only)
        return _taken(row)

    async def take_by_id(self, referral_code_id: UUID, now: datetime) -> TakenReferralCode | None:
        """Count one use of a code that was live when its id was found.

        It may have died since. Returns None if it is used up, or its owner's account erased.
        """
        row = await self._connection.fetchrow(TAKE_BY_ID, referral_code_id, now)
        if row is None and not await self._connection.fetchval(IS_LEFT, referral_code_id):
            return None
        return _taken(row)

    async def count_use(self, referral_code_id: UUID, slot: int) -> None:
        """Count one use of a code that has no `max_uses`."""
        await self._connection.execute(COUNT_USE, referral_code_id, slot)

    async def delete_unused(self, before: datetime) -> int:
        """Delete codes that ended before then and were never used.

        Looks at up to 1,000; returns at how many.
        """
        found: int = await self._connection.fetchval(DELETE_UNUSED, before)
        return found


def _taken(row: Any) -> TakenReferralCode:
    """Return the code of the row; raise SerializationError, and begin anew, if there is none.

    Then it is there all the same: another transaction, for which this one has waited, has put it in
    the place of one of the same name, or has given it a limit. With a second try in the same
    transaction two that hold the row by now could wait for each other.
    """
    if row is None:
        raise SerializationError("the referral code was changed by another transaction")
    return TakenReferralCode(
        referral_code_id=row["referral_code_id"],
        owner_id=row["owner_id"],
        owner_email_key=row["email_key"],
        code=row["code"],
        max_uses=row["max_uses"],
        used_up=row["used_up"],
    )
