"""The SQL of the codes of participants whom only a company knows, and of whole programmes."""

from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.referral_codes import ReferralCode
from service.repositories.connection import Repository
from service.repositories.constraints import on_violation
from service.repositories.referral_codes import TAKEN

# The owner is locked by the caller.
ADD: Final = """
    WITH ended AS (
        UPDATE referral_codes
           SET ended_at = LEAST(expires_at, $4),
               end_reason = CASE WHEN expires_at > $4 THEN 'replaced' ELSE 'expired' END
         WHERE (owner_id = $2 OR code = $3)
           AND ended_at IS NULL
           AND (expires_at <= $4 OR ($7 AND owner_id = $2))
        RETURNING expires_at > $4 AS was_live
    ), added AS (
        INSERT INTO referral_codes
               (referral_code_id, owner_id, code, created_at, expires_at, max_uses, programme_id)
        SELECT $1, $2, $3, $4, $5, $6, $8
          FROM (SELECT count(*) FROM ended) AS room
    )
    SELECT COALESCE(bool_or(was_live), false)
      FROM ended
"""

END: Final = """
    UPDATE referral_codes
       SET ended_at = LEAST(expires_at, $2),
           end_reason = CASE WHEN expires_at > $2 THEN 'deleted' ELSE 'expired' END
     WHERE owner_id = $1
       AND ended_at IS NULL
    RETURNING expires_at > $2
"""

EMAIL_KEYS_OF_LIVE: Final = """
    SELECT c.owner_id, u.email_key
      FROM referral_codes c
      JOIN users u ON u.user_id = c.owner_id
     WHERE c.owner_id > $2
       AND c.programme_id = $1
       AND c.ended_at IS NULL
       AND u.email_key IS NOT NULL
     ORDER BY c.owner_id
     LIMIT 1000
"""


class ParticipantCodeRepository(Repository):
    """Codes of participants: one statement per method."""

    async def add(self, code: ReferralCode, programme_id: UUID, *, replacing: bool) -> bool:
        """Store a live code of a locked participant; return whether it replaced a live one.

        Raises LiveReferralCodeExists unless `replacing`, or ReferralCodeTaken.
        """
        with on_violation(TAKEN):
            replaced: bool = await self._connection.fetchval(
                ADD,
                code.referral_code_id,
                code.owner_id,
                code.code,
                code.created_at,
                code.expires_at,
                code.max_uses,
                replacing,
                programme_id,
            )
        return replaced

    async def end(self, owner_id: UUID, now: datetime) -> bool:
        """End the code of a locked participant; return whether it was live."""
        return bool(await self._connection.fetchval(END, owner_id, now))

    async def email_keys_of_live(self, programme_id: UUID, after: UUID) -> dict[UUID, str]:
        """Return the email keys of up to 1,000 owners of live codes, by id, in their order."""
        rows = await self._connection.fetch(EMAIL_KEYS_OF_LIVE, programme_id, after)
        return {row["owner_id"]: row["email_key"] for row in rows}
