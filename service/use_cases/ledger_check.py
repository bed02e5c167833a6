"""Proving the ledger: that balances, rewards, standings and counts are what they must be."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

from service.domain.errors import Unavailable
from service.postgresql.database import Database
from service.repositories.differences import OF_PARTICIPANTS, Difference
from service.telemetry.metrics import LEDGER_DIFFERENCES

PERIOD_SECONDS: Final = 60.0
BATCH: Final = 1000
"""Participants looked at together."""
_FIRST: Final = UUID(int=0)
log = logging.getLogger(__name__)


class LedgerCheck:
    """Looks for differences in the ledger; changes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._after = _FIRST
        self._found = 0

    async def check_all(self) -> AsyncIterator[Difference]:
        """Yield every difference there is."""
        after: UUID | None = _FIRST
        while after is not None:
            found, after = await self._check(after)
            for difference in found:
                yield difference
        async with self._database.autocommit() as repositories:
            for difference in await repositories.differences.of_programmes():
                yield difference

    async def check_some(self) -> list[Difference]:
        """Look at the next participants, and measure how many differences this round has found."""
        found, after = await self._check(self._after)
        self._found += len(found)
        self._after = after or _FIRST
        # A round that found nothing ends an alarm; one under way raises it at once.
        if after is None or found:
            LEDGER_DIFFERENCES.set(self._found)
        if after is None:
            self._found = 0
        return found

    async def run(self) -> None:
        """Look at some for ever, once a minute."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            try:
                for subject_id, difference in await self.check_some():
                    log.error("the ledger is wrong: %s: %s", subject_id, difference)
            except Unavailable as error:
                log.warning("check of the ledger postponed: %s", error.__cause__ or error)

    async def _check(self, after: UUID) -> tuple[list[Difference], UUID | None]:
        """Return the differences of the next participants, and the last of them, if any."""
        async with self._database.autocommit() as repositories:
            ids = await repositories.differences.next_participants(after, BATCH)
            found = [
                difference
                for statement in OF_PARTICIPANTS
                for difference in await repositories.differences.of_participants(statement, ids)
            ]
        return found, ids[-1] if len(ids) == BATCH else None
