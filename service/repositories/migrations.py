"""The SQL of yoyo's record of applied migrations."""

from collections.abc import Sequence
from typing import Final

from service.repositories.connection import Repository

FIND_APPLIED: Final = """
    SELECT migration_id
      FROM _yoyo_migration
     WHERE migration_id = ANY($1::text[])
"""


class MigrationRepository(Repository):
    """Applied migrations, one statement per method."""

    async def find_applied(self, names: Sequence[str]) -> set[str]:
        """Return which of the migrations are applied."""
        rows = await self._connection.fetch(FIND_APPLIED, names)
        return {row["migration_id"] for row in rows}
