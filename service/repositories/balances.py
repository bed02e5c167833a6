"""The SQL of balances, which transfers move."""

from typing import Final
from uuid import UUID

from service.domain.ledger import Balance, Liability
from service.domain.pages import BalanceCursor
from service.repositories.connection import LAST_ID, Repository

OPEN: Final = """
    INSERT INTO balances (participant_id, unit, programme_id)
    VALUES ($1, $2, $3)
        ON CONFLICT (participant_id, unit) DO NOTHING
"""

FIND_AVAILABLE: Final = """
    SELECT available
      FROM balances
     WHERE participant_id = $1
       AND unit = $2
"""

OF_PARTICIPANT: Final = """
    SELECT participant_id, unit, pending, available, redeemed
      FROM balances
     WHERE participant_id = $1
       AND (participant_id, unit) < ($2, $3)
     ORDER BY unit DESC
     LIMIT $4
"""

NEWEST: Final = """
    SELECT participant_id, unit, pending, available, redeemed
      FROM balances
     WHERE programme_id = $1
       AND (participant_id, unit) < ($2, $3)
     ORDER BY participant_id DESC, unit DESC
     LIMIT $4
"""

LIABILITY: Final = """
    SELECT unit,
           sum(pending)::bigint AS pending,
           sum(GREATEST(available, 0))::bigint AS available,
           sum(GREATEST(-available, 0))::bigint AS debts,
           sum(redeemed)::bigint AS redeemed
      FROM balances
     WHERE programme_id = $1
     GROUP BY unit
     ORDER BY unit
"""


class BalanceRepository(Repository):
    """Balances, one statement a method."""

    async def open(self, participant_id: UUID, unit: str, programme_id: UUID) -> None:
        """Make an empty balance, unless there is one."""
        await self._connection.execute(OPEN, participant_id, unit, programme_id)

    async def find_available(self, participant_id: UUID, unit: str) -> int:
        """Return what is available of a unit; 0 where there never was anything."""
        return await self._connection.fetchval(FIND_AVAILABLE, participant_id, unit) or 0

    async def newest(
        self,
        programme_id: UUID,
        participant_id: UUID | None,
        limit: int,
        after: BalanceCursor | None,
    ) -> list[Balance]:
        """Return up to `limit` of a participant, or else of a programme, newest ones first."""
        rows = await self._connection.fetch(
            NEWEST if participant_id is None else OF_PARTICIPANT,
            participant_id or programme_id,
            after.participant_id if after else LAST_ID,
            after.unit if after else "",
            limit,
        )
        return [Balance(**row) for row in rows]

    async def liability(self, programme_id: UUID) -> list[Liability]:
        """Return what the programme owes, by unit."""
        rows = await self._connection.fetch(LIABILITY, programme_id)
        return [Liability(**row) for row in rows]
