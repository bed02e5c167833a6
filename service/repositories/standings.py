"""The SQL of standings: how many of a referrer's referrals have qualified."""

from datetime import datetime
from typing import Final
from uuid import UUID

from service.repositories.connection import Repository

_NUMBERED: Final = """
    numbered AS (
        UPDATE referrals
           SET nth = moved.qualified
          FROM moved
         WHERE user_id = $3
           AND nth IS NULL
           AND $2 > 0
    )
    SELECT qualified
      FROM moved
"""

MOVE: Final = f"""
    WITH moved AS (
        UPDATE standings
           SET qualified = qualified + $2
         WHERE participant_id = $1
        RETURNING qualified
    ),
    {_NUMBERED}
"""

# The same where there is no row yet: it begins with what there was before rows were kept, but for
# the referral $3 that has just been decided. The referrer may be an account that has never taken
# part in anything that made it a participant, and may be erased. For every move it would do, too,
# but PostgreSQL would plan it anew each time.
BEGIN: Final = f"""
    WITH taking_part AS (
        INSERT INTO participants (participant_id, programme_id, user_id, created_at, erased_at)
        SELECT user_id, $4, user_id, $5, erased_at
          FROM users
         WHERE user_id = $1
           FOR KEY SHARE
        ON CONFLICT (participant_id) DO NOTHING
    ), moved AS (
        INSERT INTO standings AS s (participant_id, programme_id, qualified)
        SELECT $1, $4, GREATEST(0, $2) + count(*)
          FROM referrals
         WHERE referrer_id = $1
           AND user_id IS DISTINCT FROM $3
           AND state IN ('qualified', 'rewarded')
        ON CONFLICT (participant_id) DO UPDATE SET qualified = s.qualified + $2
        RETURNING qualified
    ),
    {_NUMBERED}
"""

# A block waits for the reward that is being given to a referrer, or is seen.
LOCK: Final = """
    SELECT qualified
      FROM standings
     WHERE participant_id = $1
       FOR NO KEY UPDATE
"""

LOCK_FREE: Final = f"""
    {LOCK}
      SKIP LOCKED
"""


class StandingRepository(Repository):
    """Standings, one statement a method."""

    async def move(
        self,
        referrer_id: UUID,
        programme_id: UUID,
        difference: int,
        now: datetime,
        referral_id: UUID | None = None,
    ) -> int:
        """Count one referral more, or less; return how many there are, its number if it has none.

        The row stays locked, so that the next one is counted after this transaction.
        """
        moving = referrer_id, difference, referral_id
        qualified: int | None = await self._connection.fetchval(MOVE, *moving)
        if qualified is None:
            begin = BEGIN, *moving, programme_id, now
            qualified = await self._connection.fetchval(*begin)
        assert qualified is not None
        return qualified

    async def lock(self, participant_id: UUID) -> bool:
        """Let what a participant is given wait until the transaction ends.

        Returns False, and locks nothing, if there is no row yet.
        """
        return await self._connection.fetchval(LOCK, participant_id) is not None

    async def lock_free(self, participant_id: UUID) -> bool:
        """Like `lock`; return False also if somebody else holds the lock."""
        return await self._connection.fetchval(LOCK_FREE, participant_id) is not None
