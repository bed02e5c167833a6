"""What time alone changes: holds that are over, windows that have passed.

A reward is its own timer: each worker looks for due ones, and skips the referrals that another
worker, or an event, has locked.
"""

import asyncio
import logging
from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.clock import Clock
from service.domain.errors import Unavailable
from service.domain.referrals import SYSTEM
from service.postgresql.database import Database, retried
from service.repositories.rewards import Due
from service.use_cases.referrals import Referrals
from service.use_cases.rewards import Rewards

PERIOD_SECONDS: Final = 0.5
REST_SECONDS: Final = 5.0
"""How long the database is left alone when it does not answer."""
AT_ONCE: Final = 2
"""Releases under way at once: each is waiting for PostgreSQL most of its time."""
MOST_DUE: Final = 100
"""Rewards of each programme that a sweep looks at."""
log = logging.getLogger(__name__)


class Sweeps:
    """Releasing due rewards, and rejecting what has not qualified in time."""

    def __init__(
        self, database: Database, referrals: Referrals, rewards: Rewards, clock: Clock
    ) -> None:
        self._database = database
        self._referrals = referrals
        self._rewards = rewards
        self._clock = clock

    async def release_due(self) -> int:
        """Release rewards whose hold is over; return of how many referrals and milestones."""
        now = self._clock()
        async with self._database.autocommit() as repositories:
            due = await repositories.rewards.find_due(now, MOST_DUE)
        for place in range(0, len(due), AT_ONCE):
            some = due[place : place + AT_ONCE]
            # The others of them end before an error is told, or they would outlive the sweep.
            done = await asyncio.gather(
                *(self._release(one, now) for one in some), return_exceptions=True
            )
            for error in done:
                if error is not None:
                    raise error
        return len(due)

    async def _release(self, due: Due, now: datetime) -> None:
        if due.referral_id is not None:
            await self._referrals.follow_time(due.referral_id, now)
        elif due.participant_id is not None:
            await self._release_milestones(due.participant_id, now)

    @retried
    async def _release_milestones(self, participant_id: UUID, now: datetime) -> None:
        async with self._database.transaction() as repositories:
            await self._rewards.release_milestones(repositories, participant_id, now, SYSTEM)

    async def run(self) -> None:
        """Sweep for ever, without a pause while there is much to do."""
        while True:
            pause = PERIOD_SECONDS
            try:
                found = await self.release_due() + await self._referrals.reject_overdue()
                if found >= MOST_DUE:
                    pause = 0
            except Unavailable as error:
                log.warning("sweep postponed: %s", error.__cause__ or error)
                pause = REST_SECONDS
            await asyncio.sleep(pause)
