"""Removing from the cache what a write has outdated: at once, and again as a job.

The writer removes the keys after its commit. The job, a row of the same transaction, makes any
worker remove them once more within POLL_SECONDS: a writer that is killed between the two, or
cannot reach Redis, leaves nothing old there.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID

from service.domain.errors import Unavailable
from service.domain.jobs import Job, JobKind
from service.postgresql.database import Database, Repositories
from service.redis import RedisAway
from service.redis.cache import Cache
from service.redis.client import RedisClient
from service.telemetry.metrics import JOBS_DONE

POLL_SECONDS: Final = 0.5
BATCH: Final = 1000
KEYS_OF_A_JOB: Final = 100
"""Keeps a batch of jobs small enough to be read in one go."""
log = logging.getLogger(__name__)


CODE_KEY: Final = "code:"


def code_key(email_key: str) -> str:
    """Return the cache key of the public code of an email address."""
    return f"{CODE_KEY}{email_key}"


def session_key(session_id: UUID) -> str:
    """Return the cache key of whether a session is open."""
    return f"session:{session_id}"


class CacheInvalidation:
    """Removes cache keys now, later and when Redis is back."""

    def __init__(self, database: Database, cache: Cache, redis: RedisClient) -> None:
        self._database = database
        self._cache = cache
        self._redis = redis
        self._put_off = False
        """Whether something was left to a job since the jobs were last read."""

    @staticmethod
    async def plan(repositories: Repositories, keys: Sequence[str], now: datetime) -> None:
        """Write the jobs, in the transaction that outdates the values of `keys`."""
        for start in range(0, len(keys), KEYS_OF_A_JOB):
            some = keys[start : start + KEYS_OF_A_JOB]
            await repositories.jobs.add(JobKind.FORGET, some, now)

    async def invalidate(
        self, repositories: Repositories, keys: Sequence[str], now: datetime
    ) -> None:
        """Write the jobs, and remove `keys` right after the commit of this transaction."""
        await self.plan(repositories, keys, now)
        repositories.after_commit(partial(self.forget, keys))

    async def forget(self, keys: Sequence[str]) -> None:
        """Remove `keys` after the commit; while Redis is away the job does it."""
        if keys:
            try:
                await self._cache.forget(keys)
            except RedisAway:
                self._put_off = True

    async def work_off(self) -> None:
        """Do all jobs, and trust Redis again when none is left.

        No worker claims a job: doing one twice costs little, and a job claimed by a worker that
        hangs would be late. Raises RedisAway or Unavailable.
        """
        while True:
            self._put_off = False
            jobs = await self._oldest()
            if self._redis.away:
                await self._redis.probe()
            elif not jobs:
                return
            await self._cache.forget([key for job in jobs for key in job.payload])
            if jobs:
                async with self._database.autocommit() as repositories:
                    await repositories.jobs.delete([job.job_id for job in jobs])
                JOBS_DONE.labels(JobKind.FORGET).inc(len(jobs))
            if len(jobs) < BATCH and not self._put_off:
                self._redis.resume()
                return

    async def _oldest(self) -> list[Job]:
        try:
            async with self._database.autocommit() as repositories:
                return await repositories.jobs.oldest(JobKind.FORGET, BATCH)
        except Unavailable:
            if self._redis.away:  # nothing else would find out whether it is back
                with suppress(RedisAway):
                    await self._redis.probe()
            raise

    async def run(self) -> None:
        """Keep working off jobs, and log when Redis or PostgreSQL goes away and comes back."""
        away: str | None = None
        while True:
            found, reason = None, ""
            try:
                await self.work_off()
            except RedisAway as error:
                found, reason = "Redis", str(error)
            except Unavailable as error:
                found, reason = "PostgreSQL", f"{type(error).__name__}: {error.__cause__ or error}"
            if away and found != away:
                log.warning("%s is back.", away)
            if found and found != away:
                consequence = " Cache disabled until it is back." if self._redis.away else ""
                log.warning("%s is away: %s.%s", found, reason.rstrip("."), consequence)
            away = found
            await asyncio.sleep(POLL_SECONDS)
