"""Deleting rows that have expired."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from service.domain.clock import Clock
from service.domain.errors import Unavailable
from service.domain.idempotency import KEPT_FOR
from service.domain.jobs import PARKED_FOR
from service.domain.mails import MAILS_COUNTED_FOR
from service.domain.oauth import CODE_KEPT_FOR
from service.domain.pages import Cursor
from service.domain.participants import SIGNALS_KEPT_FOR
from service.domain.referral_codes import UNUSED_KEPT_FOR
from service.domain.security_events import KEPT_FOR as SECURITY_EVENTS_KEPT_FOR
from service.domain.sessions import ENDED_KEPT_FOR
from service.domain.webhook_deliveries import MESSAGES_KEPT_FOR
from service.postgresql.database import Database
from service.repositories import outdated

PERIOD_SECONDS: Final = 60.0
BATCH: Final = 1000
MOST_BATCHES: Final = 20
"""Of each table, once a minute: more than a worker writes (45 failed sign-ins a second)."""
_FIRST: Final = Cursor(datetime.min.replace(tzinfo=UTC), UUID(int=0))
log = logging.getLogger(__name__)


class Housekeeping:
    """Deletes what has expired, a thousand rows at a time.

    Events of participants whom nobody has referred are kept for `events_kept`.
    """

    def __init__(
        self, database: Database, clock: Clock, events_kept: timedelta = timedelta(days=90)
    ) -> None:
        self._database = database
        self._clock = clock
        self._events_kept = events_kept
        self._last_event = _FIRST

    async def tidy_up(self) -> None:
        """Delete what has expired from each table, up to MOST_BATCHES batches."""
        now = self._clock()
        deletions = {
            outdated.AUTHORIZATION_CODES: now - CODE_KEPT_FOR,
            outdated.SIGN_INS: now,
            outdated.EXPIRED_SESSIONS: now,
            outdated.ENDED_SESSIONS: now - ENDED_KEPT_FOR,
            outdated.IDEMPOTENCY_KEYS: now - KEPT_FOR,
            outdated.MAIL_TOKENS: now,
            outdated.ACCOUNT_CHANGES: now,
            outdated.CLAIMS: now,
            outdated.MAILBOXES: now - MAILS_COUNTED_FOR,
            outdated.PARKED_JOBS: now - PARKED_FOR,
            outdated.SECURITY_EVENTS: now - SECURITY_EVENTS_KEPT_FOR,
            outdated.WEBHOOK_MESSAGES: now - MESSAGES_KEPT_FOR,
            outdated.WEBHOOK_ENDPOINTS: now - MESSAGES_KEPT_FOR,
        }
        async with self._database.autocommit() as stored:
            for statement, before in deletions.items():
                for _ in range(MOST_BATCHES):
                    if await stored.outdated.delete(statement, before) < BATCH:
                        break
            for _ in range(MOST_BATCHES):
                if await stored.referral_codes.delete_unused(now - UNUSED_KEPT_FOR) < BATCH:
                    break
            for _ in range(MOST_BATCHES):
                if await stored.signals.delete_old(now - SIGNALS_KEPT_FOR) < BATCH:
                    break
        await self._delete_events(now - self._events_kept)

    async def _delete_events(self, before: datetime) -> None:
        """Go on where the last call ended: there may be many old events that stay."""
        for _ in range(MOST_BATCHES):
            async with self._database.transaction() as repositories:
                events = repositories.events
                locked = await events.lock_old(self._last_event, before)
                last = await events.delete_of_nobody(self._last_event, before, locked)
            if last is None:
                break
            self._last_event = last

    async def run(self) -> None:
        """Tidy up for ever, once a minute."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            try:
                await self.tidy_up()
            except Unavailable as error:
                log.warning("housekeeping postponed: %s", error.__cause__ or error)
