"""The SQL of balances, which transfers move."""

from collections.abc import Sequence
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

NEWEST_OF_SEVERAL: Final = """
    SELECT wanted.place, page.*
      FROM unnest($1::uuid[], $2::uuid[], $3::text[]) WITH ORDINALITY
           AS wanted (participant_id, before_id, before_unit, place)
     CROSS JOIN LATERAL (
            SELECT participant_id, unit, pending, available, redeemed
              FROM balances
             WHERE participant_id = wanted.participant_id
               AND (participant_id, unit) < (wanted.before_id, wanted.before_unit)
             ORDER BY unit DESC
             LIMIT $4
           ) AS page
     ORDER BY wanted.place, page.unit DESC
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
        self, programme_id: UUID, limit: int, after: BalanceCursor | None
    ) -> list[Balance]:
        """Return up to `limit` of a programme, those of the newest participants first."""
        rows = await self._connection.fetch(
            NEWEST,
            programme_id,
            after.participant_id if after else LAST_ID,
            after.unit if after else "",
            limit,
        )
        return list(map(Balance._make, rows))

    async def newest_of_several(
        self, wanted: Sequence[tuple[UUID, BalanceCursor | None]], limit: int
    ) -> list[list[Balance]]:
        """Return up to `limit` of each participant after the cursor."""
        return await self._pages(
            len(wanted),
            Balance._make,
            NEWEST_OF_SEVERAL,
            [participant_id for participant_id, _ in wanted],
            [after.participant_id if after else LAST_ID for _, after in wanted],
            [after.unit if after else "" for _, after in wanted],
            limit,
        )

    async def liability(self, programme_id: UUID) -> list[Liability]:
        """Return what the programme owes, by unit."""
        rows = await self._connection.fetch(LIABILITY, programme_id)
        return [Liability(**row) for row in rows]
