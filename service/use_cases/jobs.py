"""Jobs: planned in the transaction that causes them, done by any worker, at least once.

A worker claims one job of a kind at a time, in a short transaction that counts the try and keeps
other workers off for CLAIMED_FOR. It holds no transaction during calls to other services. A killed
worker leaves at most one unfinished job of each kind, which is then done again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from service.domain.clock import Clock
from service.domain.errors import ProviderUnavailable, Unavailable
from service.domain.jobs import (
    CLAIMED_FOR,
    MOST_TRIES,
    Backlog,
    Job,
    JobKind,
    JobState,
    PermanentFailure,
    RetryLater,
    wait_after,
)
from service.postgresql.database import Database, Repositories
from service.telemetry.metrics import JOBS_DONE, JOBS_FAILED

POLL_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 15.0
_NONE: Final = timedelta()
Handler = Callable[[Job], Awaitable[None]]
"""Does a job; raises RetryLater, PermanentFailure, or whatever made it fail. May run twice."""
Loop = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""Works until the event is set, and what it has begun is done."""
log = logging.getLogger(__name__)


class Jobs:
    """Planning and watching jobs."""

    def __init__(self, database: Database, kinds: Collection[JobKind], clock: Clock) -> None:
        self._database = database
        self._kinds = kinds
        self._clock = clock

    def include(self, kind: JobKind) -> bool:
        """Whether the settings provide for jobs of the kind."""
        return kind in self._kinds

    async def plan(
        self,
        repositories: Repositories,
        payloads: Mapping[JobKind, Any],
        head_start: timedelta = _NONE,
    ) -> None:
        """Write a job of each kind that can be done, in the transaction that causes it.

        It overtakes those that have waited for less than `head_start`.
        """
        wanted = {kind: payload for kind, payload in payloads.items() if kind in self._kinds}
        if wanted:
            await repositories.jobs.add_due(wanted, self._clock(), head_start)

    async def newest(self, limit: int, *, parked_alone: bool) -> list[JobState]:
        async with self._database.autocommit() as repositories:
            return await repositories.jobs.newest(limit, parked_alone=parked_alone)

    async def retry(self, job_id: UUID | None) -> int:
        """Make a parked job due again, or all of them without an id; return how many."""
        async with self._database.transaction() as repositories:
            return await repositories.jobs.retry(job_id, self._clock())

    async def backlogs(self) -> list[Backlog]:
        return await self._database.read(lambda stored: stored.jobs.backlogs())


class Worker:
    """Does the jobs of each kind, one at a time, until stopped; `loops` do theirs beside it."""

    def __init__(
        self,
        database: Database,
        handlers: Mapping[JobKind, Handler],
        clock: Clock,
        loops: Sequence[Loop] = (),
    ) -> None:
        self._database = database
        self._handlers = handlers
        self._clock = clock
        self._loops = loops
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Make `run` return once the current jobs are done."""
        self._stopping.set()

    async def run(self) -> None:
        """Do jobs until `stop`. A failing kind does not delay the others."""
        async with asyncio.TaskGroup() as tasks:
            for kind in self._handlers:
                tasks.create_task(self._run(kind))
            for loop in self._loops:
                tasks.create_task(loop(self._stopping))

    async def _run(self, kind: JobKind) -> None:
        failures = 0
        while not self._stopping.is_set():
            done = False
            try:
                done = await self.work_one(kind)
                failures = 0
            except Unavailable:
                # The next job would fail too: let it wait without counting a try.
                failures += 1
            except Exception:
                # A bug: it must not stop the other kinds.
                log.exception("worker crashed; restarting: %s", kind)
                failures += 1
            if not done:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_after(failures)):
                        await self._stopping.wait()

    async def work_one(self, kind: JobKind) -> bool:
        """Do the job that has been due for longest; return False if there is none.

        Raises Unavailable if the job was postponed for that reason.
        """
        now = self._clock()
        async with self._database.autocommit() as repositories:
            job = await repositories.jobs.claim(kind, now, now + CLAIMED_FOR)
        if job is None:
            return False
        try:
            await self._handlers[kind](job)
        except RetryLater as retry_later:
            async with self._database.autocommit() as repositories:
                due_at = self._clock() + retry_later.wait
                await repositories.jobs.postpone(job, due_at, None, retry_later.payload)
        except PermanentFailure as error:
            JOBS_FAILED.labels(kind).inc()
            await self._park(job, str(error))
        except Exception as error:
            await self._postpone(job, error)
            if isinstance(error, Unavailable):
                raise
        else:
            async with self._database.autocommit() as repositories:
                await repositories.jobs.delete([job.job_id])
            JOBS_DONE.labels(kind).inc()
        return True

    async def _postpone(self, job: Job, error: Exception) -> None:
        JOBS_FAILED.labels(job.kind).inc()
        reason = _describe(error)
        if not isinstance(error, Unavailable):
            log.error("job failed: %s %s", job.kind, job.job_id, exc_info=error)
        if job.tries >= MOST_TRIES:
            await self._park(job, reason)
            return
        async with self._database.autocommit() as repositories:
            due_at = self._clock() + wait_after(job.tries)
            await repositories.jobs.postpone(job, due_at, reason)

    async def _park(self, job: Job, error: str) -> None:
        log.error("job parked: %s %s: %s", job.kind, job.job_id, error)
        async with self._database.autocommit() as repositories:
            await repositories.jobs.park(job, self._clock(), error)


def pause_after(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row."""
    return float(min(POLL_SECONDS * 2 ** min(failures, 10), LONGEST_PAUSE_SECONDS))


def _describe(error: Exception) -> str:
    """Return what went wrong without quoting addresses or keys: mostly names of types."""
    reason = str(error) if isinstance(error, ProviderUnavailable) else type(error).__name__
    cause = error.__cause__ and type(error.__cause__).__name__
    return f"{reason} ({cause})" if cause and cause not in reason else reason
