"""The SQL of signals: keyed hashes by which fraud rules compare people."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

from service.repositories.connection import Repository

NOTE: Final = """
    INSERT INTO signals (participant_id, kind, hash, seen_at)
    SELECT $1, kind, hash, $4
      FROM unnest($2::text[], $3::bytea[]) AS told (kind, hash)
    ON CONFLICT (participant_id, kind, hash) DO UPDATE SET seen_at = excluded.seen_at
"""

DELETE_OF_PARTICIPANT: Final = """
    DELETE FROM signals
     WHERE participant_id = $1
"""

# An email address stays as long as its participant.
DELETE_OLD: Final = """
    WITH old AS (
        SELECT participant_id, kind, hash
          FROM signals
         WHERE seen_at < $1
           AND kind <> 'email'
         ORDER BY seen_at
         LIMIT 1000
    )
    DELETE FROM signals s
     USING old
     WHERE (s.participant_id, s.kind, s.hash) = (old.participant_id, old.kind, old.hash)
"""


class SignalRepository(Repository):
    """Signals, one statement a method."""

    async def note(self, participant_id: UUID, signals: Mapping[str, bytes], now: datetime) -> None:
        """Store signals by kind, as seen now."""
        await self._connection.execute(
            NOTE, participant_id, list(signals), list(signals.values()), now
        )

    async def delete_of_participant(self, participant_id: UUID) -> None:
        await self._connection.execute(DELETE_OF_PARTICIPANT, participant_id)

    async def delete_old(self, before: datetime) -> int:
        """Delete up to 1,000 signals seen before then, but no email addresses."""
        status = await self._connection.execute(DELETE_OLD, before)
        return int(status.rpartition(" ")[2])
