"""Deleting what has had its time."""

import asyncio
import logging
from typing import Final

from service.database import Database
from service.domain.clock import Clock
from service.domain.errors import Unavailable
from service.domain.idempotency import KEPT_FOR
from service.domain.jobs import PARKED_FOR
from service.domain.referral_codes import UNUSED_KEPT_FOR

PERIOD_SECONDS: Final = 60.0
log = logging.getLogger(__name__)


class Housekeeping:
    """Deletes what has expired, of each table a thousand rows at a time."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def tidy_up(self) -> None:
        now = self._clock()
        async with self._database.reading() as repositories:
            await repositories.authorization_codes.delete_expired(now)
            await repositories.sign_ins.delete_expired(now)
            await repositories.sessions.delete_expired(now)
            await repositories.idempotency_keys.delete_old(now - KEPT_FOR)
            await repositories.mail_tokens.delete_expired(now)
            await repositories.jobs.delete_parked(now - PARKED_FOR)
            await repositories.referral_codes.delete_unused(now - UNUSED_KEPT_FOR)

    async def run(self) -> None:
        """Tidy up for ever, once a minute."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            try:
                await self.tidy_up()
            except Unavailable as error:
                log.warning("housekeeping put off: %s", error.__cause__ or error)
