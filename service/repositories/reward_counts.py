"""The SQL of counting live rewards of a rule with a cap."""

from typing import Final
from uuid import UUID

from service.repositories.connection import Repository

# The row is locked before it is compared: of two that want the last place one waits.
TAKE: Final = """
    INSERT INTO reward_counts AS c (subject_id, rule, given)
    VALUES ($1, $2, 1)
        ON CONFLICT (subject_id, rule) DO UPDATE SET given = c.given + 1 WHERE c.given < $3
    RETURNING given
"""

GIVE_BACK: Final = """
    UPDATE reward_counts
       SET given = given - 1
     WHERE subject_id = $1
       AND rule = $2
"""


class RewardCountRepository(Repository):
    """Counts of live rewards by referrer or programme, and rule; one statement a method."""

    async def take(self, subject_id: UUID, rule: str, cap: int) -> bool:
        """Count one more, unless there are as many as the cap, which is at least 1."""
        return await self._connection.fetchval(TAKE, subject_id, rule, cap) is not None

    async def give_back(self, subject_id: UUID, rule: str) -> None:
        """Count one less."""
        await self._connection.execute(GIVE_BACK, subject_id, rule)
