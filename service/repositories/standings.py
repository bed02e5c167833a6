"""The SQL of standings: how many of a referrer's referrals have qualified."""

from datetime import datetime
from typing import Final
from uuid import UUID

from service.repositories.connection import Repository

# A referrer's first row begins with what there was before rows were kept. It is written before the
# referral that is being decided, which is therefore not in the count. The referrer may be an
# account that has never taken part in anything that made it a participant, and may be erased.
# GREATEST, because the constraint looks at the proposed row even where there is one already.
MOVE: Final = """
    WITH taking_part AS (
        INSERT INTO participants (participant_id, programme_id, user_id, created_at, erased_at)
        SELECT user_id, $2, user_id, $4, erased_at
          FROM users
         WHERE user_id = $1
           FOR KEY SHARE
        ON CONFLICT (participant_id) DO NOTHING
    )
    INSERT INTO standings AS s (participant_id, programme_id, qualified)
    SELECT $1, $2, GREATEST(0, $3 + count(*))
      FROM referrals
     WHERE referrer_id = $1
       AND state IN ('qualified', 'rewarded')
       AND NOT EXISTS (SELECT FROM standings WHERE participant_id = $1)
    ON CONFLICT (participant_id) DO UPDATE SET qualified = s.qualified + $3
    RETURNING qualified
"""


class StandingRepository(Repository):
    """Standings, one statement a method."""

    async def move(
        self, referrer_id: UUID, programme_id: UUID, difference: int, now: datetime
    ) -> int:
        """Count one referral more, or less; return how many there are.

        The row stays locked, so that the next one is counted after this transaction.
        """
        qualified: int = await self._connection.fetchval(
            MOVE, referrer_id, programme_id, difference, now
        )
        return qualified
