"""The SQL of referral codes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.errors import LiveReferralCodeExists, ReferralCodeTaken
from service.domain.referral_codes import PublicReferralCode, ReferralCode, TakenReferralCode
from service.repositories.connection import Connection
from service.repositories.constraints import on_violation

# What has expired holds neither its owner nor its name. It is ended first, because the new row
# waits for the count; so is, where $9 says so, the owner's live code. The job is what
# use_cases/forgetting.py plans for other writes.
ADD: Final = """
    WITH ended AS (
        UPDATE referral_codes
           SET ended_at = LEAST(expires_at, $4)
         WHERE (owner_id = $2 OR code = $3)
           AND ended_at IS NULL
           AND (expires_at <= $4 OR ($9 AND owner_id = $2))
        RETURNING expires_at > $4 AS was_live
    ), added AS (
        INSERT INTO referral_codes
               (referral_code_id, owner_id, code, created_at, expires_at, max_uses)
        SELECT $1, $2, $3, $4, $5, $6
          FROM (SELECT count(*) FROM ended) AS room
        RETURNING owner_id, created_at
    ), planned AS (
        INSERT INTO jobs (job_id, kind, payload, created_at)
        SELECT $7, 'forget', jsonb_build_array($8::text || u.email_key), a.created_at
          FROM added a
          JOIN users u ON u.user_id = a.owner_id
         WHERE u.email_key IS NOT NULL
    )
    SELECT email_key, (SELECT COALESCE(bool_or(was_live), false) FROM ended) AS replaced
      FROM users
     WHERE user_id = $2
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

FIND_LIVE_BY_EMAILS: Final = """
    SELECT u.email_key, c.code, c.expires_at, c.owner_id AS referrer_id
      FROM users u
      JOIN referral_codes c ON c.owner_id = u.user_id
     WHERE u.email_key = ANY ($1)
       AND u.disabled_at IS NULL
       AND c.ended_at IS NULL
       AND c.expires_at > $2
"""

LOCK_OWNER: Final = """
    SELECT user_id
      FROM users
     WHERE user_id = $1
       FOR NO KEY UPDATE
"""

FIND_USABLE: Final = """
    SELECT c.referral_code_id
      FROM referral_codes c
      JOIN users u ON u.user_id = c.owner_id
     WHERE c.code = $1
       AND c.ended_at IS NULL
       AND c.expires_at > $2
       AND u.disabled_at IS NULL
"""

# `was_there` is of the statement's snapshot: a code that is there, but is not ended, was ended by
# another transaction first, for which this one waited. That may have put a new code in its place,
# which the statement does not see.
END_OF_OWNER: Final = """
    WITH ended AS (
        UPDATE referral_codes c
           SET ended_at = $2
          FROM users u
         WHERE c.owner_id = $1
           AND c.ended_at IS NULL
           AND u.user_id = c.owner_id
        RETURNING c.expires_at, u.email_key
    ), planned AS (
        INSERT INTO jobs (job_id, kind, payload, created_at)
        SELECT $3, 'forget', jsonb_build_array($4::text || email_key), $2
          FROM ended
         WHERE email_key IS NOT NULL
    )
    SELECT e.expires_at, e.email_key, was_there
      FROM (SELECT EXISTS (SELECT FROM referral_codes WHERE owner_id = $1 AND ended_at IS NULL)
           ) AS snapshot (was_there)
      LEFT JOIN ended e ON true
"""

# Two ways to take a code. With `max_uses` the row is updated, so that registrations queue and the
# limit is exact. Without, they share the row: they wait for nobody, only a deletion waits for them.
TAKE: Final = """
    WITH counted AS (
        UPDATE referral_codes c
           SET uses = c.uses + 1,
               ended_at = CASE WHEN c.uses + 1 >= c.max_uses THEN $2::timestamptz END
          FROM users u
         WHERE c.code = $1
           AND c.ended_at IS NULL
           AND c.expires_at > $2
           AND c.max_uses IS NOT NULL
           AND u.user_id = c.owner_id
           AND u.disabled_at IS NULL
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
    SELECT t.referral_code_id, t.owner_id, u.email_key, t.code, t.max_uses, t.ended_at
      FROM taken t
      JOIN users u ON u.user_id = t.owner_id
     WHERE u.disabled_at IS NULL
       AND u.erased_at IS NULL
"""

# As TAKE, for who registered while the code lived: it may have died since, but not have been used
# up, and its owner is not erased.
TAKE_BY_ID: Final = """
    WITH counted AS (
        UPDATE referral_codes c
           SET uses = c.uses + 1,
               ended_at = CASE WHEN c.uses + 1 >= c.max_uses
                               THEN COALESCE(c.ended_at, LEAST(c.expires_at, $2))
                               ELSE c.ended_at END
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
"""

COUNT_USE: Final = """
    INSERT INTO referral_code_uses (referral_code_id, slot, uses)
    VALUES ($1, $2, 1)
    ON CONFLICT (referral_code_id, slot)
    DO UPDATE SET uses = referral_code_uses.uses + 1
"""


class ReferralCodeRepository:
    """Referral codes, one statement a method."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(
        self, code: ReferralCode, key: str, *, replacing: bool = False
    ) -> tuple[str | None, bool]:
        """Store a live code; return its owner's e-mail key, and whether it replaced a live one.

        The e-mail key is None if the account is erased. `key` is how the cache key begins that a
        job is to forget. Raises LiveReferralCodeExists while its owner holds another (if it is
        `replacing`, only if that one has just been added), ReferralCodeTaken while another owner
        holds this one.
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
            )
        assert row is not None
        return row["email_key"], row["replaced"]

    async def find_live(self, owner_id: UUID, now: datetime) -> ReferralCode | None:
        row = await self._connection.fetchrow(FIND_LIVE, owner_id, now)
        return None if row is None else ReferralCode(**row)

    async def find_live_by_emails(
        self, email_keys: Sequence[str], now: datetime
    ) -> dict[str, PublicReferralCode]:
        """Return the live codes of those who have one, by e-mail key."""
        rows = await self._connection.fetch(FIND_LIVE_BY_EMAILS, email_keys, now)
        return {
            row["email_key"]: PublicReferralCode(
                code=row["code"], expires_at=row["expires_at"], referrer_id=row["referrer_id"]
            )
            for row in rows
        }

    async def lock_owner(self, owner_id: UUID) -> None:
        """Let one replacement of an owner's code at a time go on until it commits."""
        await self._connection.fetchval(LOCK_OWNER, owner_id)

    async def end_of_owner(
        self, owner_id: UUID, now: datetime, key: str
    ) -> tuple[bool, str | None] | None:
        """End the owner's code; return whether it was live until now, and the e-mail key.

        `key` is how the cache key begins that a job is to forget. None if there is nothing to end.
        """
        while True:
            row = await self._connection.fetchrow(END_OF_OWNER, owner_id, now, uuid7(), key)
            assert row is not None
            if row["expires_at"] is not None:
                return row["expires_at"] > now, row["email_key"]
            if not row["was_there"]:
                return None

    async def take(self, code: str, now: datetime) -> TakenReferralCode | None:
        """Count one use of a live code towards `max_uses`; return it, or None if none lives."""
        row = await self._connection.fetchrow(TAKE, code, now)
        return None if row is None else _taken(row, used_up=row["ended_at"] is not None)

    async def take_by_id(self, referral_code_id: UUID, now: datetime) -> TakenReferralCode | None:
        """Count one use of a code that lived at the registration; None if it is used up.

        None too if its owner is erased. Whether it lives does not matter.
        """
        row = await self._connection.fetchrow(TAKE_BY_ID, referral_code_id, now)
        return None if row is None else _taken(row, used_up=row["used_up"])

    async def find_usable(self, code: str, now: datetime) -> UUID | None:
        """Return the code with which anybody could register now."""
        referral_code_id: UUID | None = await self._connection.fetchval(FIND_USABLE, code, now)
        return referral_code_id

    async def count_use(self, referral_code_id: UUID, slot: int) -> None:
        """Count one use of a code that has no `max_uses`."""
        await self._connection.execute(COUNT_USE, referral_code_id, slot)


def _taken(row: Any, *, used_up: bool) -> TakenReferralCode:
    return TakenReferralCode(
        referral_code_id=row["referral_code_id"],
        owner_id=row["owner_id"],
        owner_email_key=row["email_key"],
        code=row["code"],
        max_uses=row["max_uses"],
        used_up=used_up,
    )
