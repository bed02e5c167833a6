"""Deleting what has had its time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from service.domain.clock import Clock
from service.domain.errors import Unavailable
from service.domain.idempotency import KEPT_FOR
from service.domain.jobs import PARKED_FOR
from service.domain.mails import MAILS_COUNTED_FOR
from service.domain.referral_codes import UNUSED_KEPT_FOR
from service.domain.security_events import KEPT_FOR as SECURITY_EVENTS_KEPT_FOR
from service.domain.sessions import ENDED_KEPT_FOR
from service.postgresql.database import Database

PERIOD_SECONDS: Final = 60.0
BATCH: Final = 1000
MOST_BATCHES: Final = 20
"""Of each table, once a minute: more than a worker writes (45 failed sign-ins a second)."""
Deletion = Callable[[datetime], Awaitable[int]]
"""Deletes up to BATCH rows from before then; returns how many."""
log = logging.getLogger(__name__)


class Housekeeping:
    """Deletes what has expired, a thousand rows at a time."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def tidy_up(self) -> None:
        """Delete what has expired from each table, up to MOST_BATCHES batches."""
        now = self._clock()
        async with self._database.autocommit() as stored:
            deletions: tuple[tuple[Deletion, datetime], ...] = (
                (stored.authorization_codes.delete_expired, now),
                (stored.sign_ins.delete_expired, now),
                (stored.sessions.delete_expired, now),
                (stored.sessions.delete_ended, now - ENDED_KEPT_FOR),
                (stored.idempotency_keys.delete_old, now - KEPT_FOR),
                (stored.mail_tokens.delete_expired, now),
                (stored.account_changes.delete_expired, now),
                (stored.claims.delete_expired, now),
                (stored.mailboxes.delete_old, now - MAILS_COUNTED_FOR),
                (stored.referral_codes.delete_unused, now - UNUSED_KEPT_FOR),
                (stored.jobs.delete_parked, now - PARKED_FOR),
                (stored.security_events.delete_old, now - SECURITY_EVENTS_KEPT_FOR),
            )
            for delete, before in deletions:
                for _ in range(MOST_BATCHES):
                    if await delete(before) < BATCH:
                        break

    async def run(self) -> None:
        """Tidy up for ever, once a minute."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            try:
                await self.tidy_up()
            except Unavailable as error:
                log.warning("housekeeping put off: %s", error.__cause__ or error)
