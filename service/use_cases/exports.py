"""Exporting whole tables, a thousand rows a statement."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

from service.domain.exports import Exported, Place
from service.postgresql.database import Database
from service.repositories import exports
from service.repositories.exports import Row

_STATEMENTS: Final = {
    Exported.PARTICIPANTS: exports.PARTICIPANTS,
    Exported.CODES: exports.CODES,
    Exported.REFERRALS: exports.REFERRALS,
    Exported.EVENTS: exports.EVENTS,
    Exported.DECISIONS: exports.DECISIONS,
    Exported.REWARDS: exports.REWARDS,
    Exported.TRANSFERS: exports.TRANSFERS,
    Exported.BALANCES: exports.BALANCES,
}


class Exports:
    """Exports for companies, to be resumed after the last row that arrived."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def batches(self, table: Exported, after: Place) -> AsyncIterator[Sequence[Row]]:
        """Yield the rows after a place in the order of their ids, up to 1,000 at a time.

        No connection is held in between: a reader may be slow.
        """
        while True:
            async with self._database.autocommit() as repositories:
                rows = await repositories.exports.after(_STATEMENTS[table], *after.arguments)
            if not rows:
                return
            yield rows
            after = Place.parse(table, str(rows[-1]["id"]))
