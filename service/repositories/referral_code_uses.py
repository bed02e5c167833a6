"""The SQL of using referral codes: finding the code that a person typed, and counting a use."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from asyncpg import SerializationError

from service.domain.referral_codes import PublicReferralCode, TakenReferralCode
from service.repositories.connection import Repository
from service.repositories.referral_codes import not_withdrawn

# Whether the owner of the code `c` may refer anyone: an account, or a participant whom only a
# company knows.
_OWNER_MAY_REFER: Final = f"""
    EXISTS (
        SELECT FROM users u
         WHERE u.user_id = c.owner_id
           AND u.disabled_at IS NULL
           AND u.erased_at IS NULL
           AND (u.email_confirmed_at IS NOT NULL OR NOT $3)
        UNION ALL
        SELECT FROM participants p
         WHERE p.participant_id = c.owner_id
           AND p.user_id IS NULL
           AND p.erased_at IS NULL
    )
    AND {not_withdrawn()}
"""

_OWNER_IS_THERE: Final = """
    NOT EXISTS (SELECT FROM users WHERE user_id = c.owner_id AND erased_at IS NOT NULL)
    AND NOT EXISTS (
        SELECT FROM participants WHERE participant_id = c.owner_id AND erased_at IS NOT NULL
    )
"""


def _of_owner(account: str = "") -> str:
    """Return the last part of a statement that takes a code: its owner, locked against an end.

    The owner's standing is locked as well: what fraud rules compare a sign-up with are those before
    it, also those at the same instant.
    """
    return f"""
    of_account AS (
        SELECT t.*, u.email_key AS owner_email_key
          FROM taken t
          JOIN users u ON u.user_id = t.owner_id
         WHERE u.erased_at IS NULL
           {account}
           FOR KEY SHARE OF u
    ), of_participant AS (
        SELECT t.*, NULL AS owner_email_key
          FROM taken t
          JOIN participants p ON p.participant_id = t.owner_id
         WHERE p.user_id IS NULL
           AND p.erased_at IS NULL
           FOR KEY SHARE OF p
    ), standing AS (
        SELECT s.participant_id
          FROM taken t
          JOIN standings s ON s.participant_id = t.owner_id
           FOR NO KEY UPDATE OF s
    )
    SELECT taken.*, p.key AS programme, p.version,
           EXISTS (SELECT FROM standing) AS is_standing_locked
      FROM (SELECT * FROM of_account UNION ALL SELECT * FROM of_participant) AS taken
      JOIN programmes p ON p.programme_id = taken.programme_id
"""


_IF_LIVE: Final = "AND u.disabled_at IS NULL AND (u.email_confirmed_at IS NOT NULL OR NOT $3)"

# The code as typed, or otherwise the live code of its name's owner, with look-alikes folded as by
# the trigger on referral_codes. Two owners may have live codes that look alike, from before names
# had owners: each is found by its own spelling; any other spelling leads to the name's owner.
FIND_USABLE: Final = f"""
    SELECT c.referral_code_id, c.owner_id, c.programme_id, c.code, c.expires_at
      FROM referral_codes c
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
       AND {_OWNER_MAY_REFER}
"""

# The code that a link led to at that moment: one that was replaced, or has expired, since then
# still counts; one that was deleted, also under the same name later, or used up does not. Clocks
# differ: a code counts that was created up to five minutes later.
FIND_AT: Final = f"""
    SELECT c.referral_code_id
      FROM referral_codes c
     WHERE c.code = COALESCE(
                (SELECT code FROM referral_codes WHERE code = $1 LIMIT 1),
                (SELECT alike.code
                   FROM referral_code_names n
                   JOIN referral_codes alike ON alike.owner_id = n.owner_id
                  WHERE n.name = translate($1, 'OIL', '011')
                    AND translate(alike.code, 'OIL', '011') = n.name
                  LIMIT 1)
           )
       AND c.created_at <= $2::timestamptz + interval '5 minutes'
       AND c.expires_at > $2
       AND (c.ended_at IS NULL OR (c.ended_at > $2 AND c.end_reason IN ('replaced', 'expired')))
       AND NOT EXISTS (
            SELECT FROM referral_codes later
             WHERE later.code = c.code
               AND later.created_at > c.created_at
               AND later.end_reason = 'deleted'
           )
       AND {_OWNER_MAY_REFER}
     ORDER BY c.created_at DESC
     LIMIT 1
"""

# Two ways to take a code. With `max_uses` the row is updated: registrations queue, and the limit is
# exact. Without, they share the row and wait for nobody; only a deletion waits for them. The owner
# is locked for the email address, as in referral_codes.CHANGE.
TAKE: Final = f"""
    WITH counted AS (
        UPDATE referral_codes c
           SET uses = c.uses + 1,
               ended_at = CASE WHEN c.uses + 1 >= c.max_uses THEN $2::timestamptz END,
               end_reason = CASE WHEN c.uses + 1 >= c.max_uses THEN 'used-up' END
         WHERE c.code = $1
           AND c.ended_at IS NULL
           AND c.expires_at > $2
           AND c.max_uses IS NOT NULL
           AND {_OWNER_MAY_REFER}
        RETURNING c.referral_code_id, c.owner_id, c.programme_id, c.code, c.max_uses,
                  c.ended_at IS NOT NULL AS used_up
    ), shared AS (
        SELECT c.referral_code_id, c.owner_id, c.programme_id, c.code, c.max_uses, false AS used_up
          FROM referral_codes c
         WHERE c.code = $1
           AND c.ended_at IS NULL
           AND c.expires_at > $2
           AND c.max_uses IS NULL
           AND {_OWNER_MAY_REFER}
           FOR SHARE OF c
    ), taken AS (
        SELECT * FROM counted UNION ALL SELECT * FROM shared
    ), {_of_owner(_IF_LIVE)}
"""

# The same two ways. A code that has died stays as dead as it is.
TAKE_BY_ID: Final = f"""
    WITH counted AS (
        UPDATE referral_codes c
           SET uses = c.uses + 1,
               ended_at = CASE WHEN c.ended_at IS NULL AND c.expires_at > $2
                                AND c.uses + 1 >= c.max_uses
                               THEN $2::timestamptz ELSE c.ended_at END,
               end_reason = CASE WHEN c.ended_at IS NULL AND c.expires_at > $2
                                  AND c.uses + 1 >= c.max_uses
                                 THEN 'used-up' ELSE c.end_reason END
         WHERE c.referral_code_id = $1
           AND c.uses < c.max_uses
           AND {_OWNER_IS_THERE}
        RETURNING c.referral_code_id, c.owner_id, c.programme_id, c.code, c.max_uses,
                  c.uses >= c.max_uses AS used_up
    ), shared AS (
        SELECT referral_code_id, owner_id, programme_id, code, max_uses, false AS used_up
          FROM referral_codes
         WHERE referral_code_id = $1
           AND max_uses IS NULL
           FOR SHARE
    ), taken AS (
        SELECT * FROM counted UNION ALL SELECT * FROM shared
    ), {_of_owner()}
"""

# Whether a code, dead or alive, has a use left.
IS_LEFT: Final = f"""
    SELECT EXISTS (
        SELECT FROM referral_codes c
         WHERE c.referral_code_id = $1
           AND (c.max_uses IS NULL OR c.uses < c.max_uses)
           AND {_OWNER_IS_THERE}
    )
"""

COUNT_USE: Final = """
    INSERT INTO referral_code_uses (referral_code_id, slot, uses)
    VALUES ($1, $2, 1)
    ON CONFLICT (referral_code_id, slot)
    DO UPDATE SET uses = referral_code_uses.uses + 1
"""


class ReferralCodeUseRepository(Repository):
    """Referral codes as people register with them.

    If `confirmed_only`, a code does not live while its owner's email address is not confirmed.
    """

    async def find_usable(self, code: str, now: datetime, *, confirmed_only: bool) -> UUID | None:
        """Return the id of the live code that typing `code` registers with now."""
        found: UUID | None = await self._connection.fetchval(FIND_USABLE, code, now, confirmed_only)
        return found

    async def find_at(self, code: str, moment: datetime, *, confirmed_only: bool) -> UUID | None:
        """Return the id of the code that lived at that moment, and may have died since."""
        found: UUID | None = await self._connection.fetchval(FIND_AT, code, moment, confirmed_only)
        return found

    async def find_public(
        self, code: str, now: datetime, *, confirmed_only: bool
    ) -> PublicReferralCode | None:
        """Return the code that `find_usable` finds, as anyone may see it."""
        row = await self._connection.fetchrow(FIND_USABLE, code, now, confirmed_only)
        if row is None:
            return None
        return PublicReferralCode(
            code=row["code"], expires_at=row["expires_at"], referrer_id=row["owner_id"]
        )

    async def find_in_programme(
        self, code: str, now: datetime, *, confirmed_only: bool
    ) -> tuple[str, UUID] | None:
        """Return the code that `find_usable` finds, and the id of its programme."""
        row = await self._connection.fetchrow(FIND_USABLE, code, now, confirmed_only)
        return None if row is None else (row["code"], row["programme_id"])

    async def take(
        self, code: str, now: datetime, *, confirmed_only: bool
    ) -> TakenReferralCode | None:
        """Count one use of a live code towards `max_uses`; return it, or None if none lives."""
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


def _taken(row: Any) -> TakenReferralCode:
    """Return the code of the row; raise SerializationError, which retries, if there is none.

    The code exists nevertheless: another transaction, which this one waited for, replaced it by one
    of the same name or gave it a limit. A second try in the same transaction could deadlock with
    one that has locked the row since.
    """
    if row is None:
        raise SerializationError("the referral code was changed by another transaction")
    return TakenReferralCode(**row)
