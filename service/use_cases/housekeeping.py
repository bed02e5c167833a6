"""Deleting rows that have expired."""

import asyncio
import logging
from typing import Final

from service.domain.clock import Clock
from service.domain.errors import Unavailable
from service.domain.idempotency import KEPT_FOR
from service.domain.jobs import PARKED_FOR
from service.domain.mails import MAILS_COUNTED_FOR
from service.domain.oauth import CODE_KEPT_FOR
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
log = logging.getLogger(__name__)


class Housekeeping:
    """Deletes what has expired, a thousand rows at a time."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

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

    async def run(self) -> None:
        """Tidy up for ever, once a minute."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            try:
                await self.tidy_up()
            except Unavailable as error:
                log.warning("housekeeping postponed: %s", error.__cause__ or error)
