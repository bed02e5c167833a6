"""Jobs are done at least once, by one worker at a time, later if need be, and never lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from time import monotonic

import asyncpg
import pytest

from service.domain.errors import DatabaseUnavailable, ProviderUnavailable
from service.domain.jobs import (
    CLAIMED_FOR,
    MOST_TRIES,
    PARKED_FOR,
    Job,
    JobKind,
    PermanentFailure,
    RetryLater,
    wait_after,
)
from service.postgresql import database as databases
from service.postgresql.database import Database
from service.telemetry.metrics import JOBS_DONE, JOBS_FAILED
from service.use_cases.housekeeping import Housekeeping
from service.use_cases.jobs import Jobs, Worker
from tests.conftest import Servers
from tests.factories import MovableClock
from tests.waiting import until

KIND = JobKind.MAIL
MINUTE = timedelta(minutes=1)


@pytest.fixture
async def pool(servers: Servers, database: asyncpg.Connection) -> AsyncIterator[Database]:
    """What workers use; `database` empties the tables afterwards."""
    async with databases.connect(servers.database_url, 8) as pool:
        yield pool


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def jobs(pool: Database, clock: MovableClock) -> Jobs:
    return Jobs(pool, [KIND, JobKind.ENRICH], clock)


async def plan(pool: Database, jobs: Jobs, *payloads: object, kind: JobKind = KIND) -> None:
    for payload in payloads:
        async with pool.transaction() as repositories:
            await jobs.plan(repositories, {kind: payload})


class Doer:
    """Does jobs as it is told, and remembers which."""

    def __init__(self, *outcomes: BaseException | None) -> None:
        self.done: list[Job] = []
        self._outcomes = list(outcomes)

    async def __call__(self, job: Job) -> None:
        self.done.append(job)
        outcome = self._outcomes.pop(0) if self._outcomes else None
        if outcome is not None:
            raise outcome

    @property
    def payloads(self) -> list[object]:
        return [job.payload for job in self.done]


def worker_of(
    pool: Database, clock: MovableClock, handler: Callable[[Job], Awaitable[None]]
) -> Worker:
    return Worker(pool, {KIND: handler}, clock)


async def row(database: asyncpg.Connection) -> asyncpg.Record:
    [found] = await database.fetch("SELECT * FROM jobs")
    return found


async def test_a_job_is_done_and_gone(
    pool: Database, jobs: Jobs, clock: MovableClock, database: asyncpg.Connection
) -> None:
    await plan(pool, jobs, {"of": "anna"})
    doer = Doer()
    assert await worker_of(pool, clock, doer).work_one(KIND)
    assert doer.payloads == [{"of": "anna"}]
    assert await database.fetchval("SELECT count(*) FROM jobs") == 0
    assert not await worker_of(pool, clock, doer).work_one(KIND)


async def test_a_transaction_that_is_rolled_back_plans_nothing(
    pool: Database, jobs: Jobs, database: asyncpg.Connection
) -> None:
    async def fail() -> None:
        async with pool.transaction() as repositories:
            await jobs.plan(repositories, {KIND: 1})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await database.fetchval("SELECT count(*) FROM jobs") == 0


async def test_what_nobody_does_is_not_planned(
    pool: Database, jobs: Jobs, database: asyncpg.Connection
) -> None:
    await plan(pool, jobs, 1, kind=JobKind.VERIFY_EMAIL)
    assert not jobs.include(JobKind.VERIFY_EMAIL)
    assert await database.fetchval("SELECT count(*) FROM jobs") == 0


async def test_workers_never_do_the_same_job(
    pool: Database, jobs: Jobs, clock: MovableClock
) -> None:
    """Without FOR UPDATE SKIP LOCKED in CLAIM they do."""
    await plan(pool, jobs, *range(40))
    doer = Doer()

    async def work() -> None:
        while await worker_of(pool, clock, doer).work_one(KIND):
            pass

    await asyncio.gather(*(work() for _ in range(8)))
    assert sorted(doer.payloads, key=str) == sorted(range(40), key=str)


async def test_one_worker_does_not_wait_for_another(
    pool: Database, jobs: Jobs, clock: MovableClock
) -> None:
    await plan(pool, jobs, "slow", "quick")
    begun, finish = asyncio.Event(), asyncio.Event()

    async def hang(job: Job) -> None:
        begun.set()
        await finish.wait()

    slow = asyncio.create_task(worker_of(pool, clock, hang).work_one(KIND))
    await begun.wait()
    doer = Doer()
    assert await worker_of(pool, clock, doer).work_one(KIND)
    assert doer.payloads == ["quick"]
    finish.set()
    assert await slow


async def test_a_worker_that_is_claiming_a_job_holds_up_no_other(
    pool: Database, jobs: Jobs, clock: MovableClock
) -> None:
    """Without SKIP LOCKED in CLAIM the second waits until the first has committed."""
    await plan(pool, jobs, "one", "two")
    doer = Doer()
    async with pool.transaction() as repositories:
        claimed = await repositories.jobs.claim(KIND, clock(), clock() + CLAIMED_FOR)
        assert claimed is not None
        async with asyncio.timeout(1):
            assert await worker_of(pool, clock, doer).work_one(KIND)
    assert [claimed.payload, *doer.payloads] == ["one", "two"]


async def test_the_job_of_a_worker_that_died_is_done_by_another(
    pool: Database, jobs: Jobs, clock: MovableClock
) -> None:
    await plan(pool, jobs, "one")
    dying = Doer(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await worker_of(pool, clock, dying).work_one(KIND)
    doer = Doer()
    assert not await worker_of(pool, clock, doer).work_one(KIND)
    clock.ahead += CLAIMED_FOR
    assert await worker_of(pool, clock, doer).work_one(KIND)
    assert doer.payloads == ["one"]
    assert doer.done[0].tries == 2


@pytest.mark.parametrize(
    "failure", [RuntimeError("late"), PermanentFailure("late"), RetryLater(MINUTE)]
)
async def test_a_worker_that_took_too_long_does_not_disturb_the_next(
    pool: Database,
    jobs: Jobs,
    clock: MovableClock,
    database: asyncpg.Connection,
    failure: Exception,
) -> None:
    """Without `tries` in POSTPONE and PARK the late failure would put off the job that another is
    doing, or take it away."""
    await plan(pool, jobs, "one")

    async def fail_late(job: Job) -> None:
        clock.ahead += CLAIMED_FOR
        async with pool.transaction() as repositories:
            claimed = await repositories.jobs.claim(KIND, clock(), clock() + CLAIMED_FOR)
        assert claimed is not None
        raise failure

    await worker_of(pool, clock, fail_late).work_one(KIND)
    found = await row(database)
    assert (found["tries"], found["last_error"], found["parked_at"]) == (2, None, None)
    assert found["due_at"] - clock() > CLAIMED_FOR - timedelta(seconds=5)


async def test_a_job_that_fails_waits_longer_each_time(
    pool: Database, jobs: Jobs, clock: MovableClock, database: asyncpg.Connection
) -> None:
    await plan(pool, jobs, 1)
    worker = worker_of(pool, clock, Doer(*[RuntimeError("no")] * 4))
    waits = []
    for tries in range(1, 5):
        assert await worker.work_one(KIND)
        found = await row(database)
        assert found["tries"] == tries
        assert found["last_error"] == "RuntimeError"
        waits.append((found["due_at"] - clock()).total_seconds())
        assert not await worker.work_one(KIND)
        clock.ahead += found["due_at"] - clock()
    for seconds, longest in zip(waits, (5, 10, 20, 40), strict=True):
        assert longest / 2 - 1 < seconds <= longest


def test_no_wait_is_longer_than_an_hour() -> None:
    waits = [wait_after(tries).total_seconds() for tries in (*range(1, 60), 10_000)]
    assert max(waits) <= 3600
    assert min(waits[20:]) >= 1800


def test_two_jobs_that_failed_together_do_not_come_back_together() -> None:
    assert len({wait_after(5) for _ in range(50)}) > 40


async def test_after_the_last_try_it_is_parked_until_an_operator_wants_it(
    pool: Database, jobs: Jobs, clock: MovableClock, database: asyncpg.Connection
) -> None:
    await plan(pool, jobs, 1)
    worker = worker_of(pool, clock, Doer(*[RuntimeError("no")] * MOST_TRIES))
    for _ in range(MOST_TRIES):
        assert await worker.work_one(KIND)
        clock.ahead += timedelta(hours=1)
    found = await row(database)
    assert found["parked_at"] is not None
    assert not await worker.work_one(KIND)

    [state] = await jobs.newest(10, parked_alone=True)
    assert (state.kind, state.tries, state.last_error) == ("mail", MOST_TRIES, "RuntimeError")
    assert await jobs.retry(state.job_id) == 1
    assert await jobs.retry(state.job_id) == 0  # it is not parked any more
    assert await worker.work_one(KIND)
    assert await database.fetchval("SELECT count(*) FROM jobs") == 0


async def test_what_is_hopeless_is_parked_at_once(
    pool: Database, jobs: Jobs, clock: MovableClock, database: asyncpg.Connection
) -> None:
    await plan(pool, jobs, 1)
    assert await worker_of(pool, clock, Doer(PermanentFailure("550"))).work_one(KIND)
    found = await row(database)
    assert (found["parked_at"] is not None, found["last_error"]) == (True, "550")


async def test_all_parked_jobs_are_tried_again(
    pool: Database, jobs: Jobs, clock: MovableClock
) -> None:
    await plan(pool, jobs, 1, 2, 3)
    worker = worker_of(pool, clock, Doer(PermanentFailure("no"), PermanentFailure("no")))
    while await worker.work_one(KIND):
        pass
    assert await jobs.retry(None) == 2
    # At once, and as patiently as new ones.
    doer = Doer()
    retrying = worker_of(pool, clock, doer)
    while await retrying.work_one(KIND):
        pass
    assert [job.tries for job in doer.done] == [1, 1]


async def test_what_is_parked_for_long_is_deleted(
    pool: Database, jobs: Jobs, clock: MovableClock, database: asyncpg.Connection
) -> None:
    await plan(pool, jobs, 1)
    clock.ahead += timedelta(days=1)  # it is old before it is parked
    await worker_of(pool, clock, Doer(PermanentFailure("no"))).work_one(KIND)
    clock.ahead += PARKED_FOR - MINUTE
    await Housekeeping(pool, clock).tidy_up()
    assert await database.fetchval("SELECT count(*) FROM jobs") == 1
    clock.ahead += MINUTE
    await Housekeeping(pool, clock).tidy_up()
    assert await database.fetchval("SELECT count(*) FROM jobs") == 0


async def test_work_that_is_not_finished_waits_as_long_as_it_says(
    pool: Database, jobs: Jobs, clock: MovableClock, database: asyncpg.Connection
) -> None:
    await plan(pool, jobs, 1)
    assert await worker_of(pool, clock, Doer(RetryLater(MINUTE))).work_one(KIND)
    found = await row(database)
    assert abs(found["due_at"] - clock() - MINUTE) < timedelta(seconds=2)
    assert found["last_error"] is None


async def test_a_worker_goes_on_after_each_kind_of_failure(
    pool: Database, jobs: Jobs, clock: MovableClock, database: asyncpg.Connection
) -> None:
    await plan(pool, jobs, *range(6))
    doer = Doer(
        ProviderUnavailable(), RuntimeError("a bug"), DatabaseUnavailable(), RetryLater(MINUTE)
    )
    worker = worker_of(pool, clock, doer)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(20):
        while len(doer.done) < 6:
            await asyncio.sleep(0.02)
    worker.stop()
    await running
    assert await database.fetchval("SELECT count(*) FROM jobs") == 4
    assert await database.fetchval("SELECT count(*) FROM jobs WHERE parked_at IS NOT NULL") == 0


async def test_a_kind_that_hangs_holds_up_no_other(
    pool: Database, jobs: Jobs, clock: MovableClock
) -> None:
    await plan(pool, jobs, 1)
    await plan(pool, jobs, *range(5), kind=JobKind.ENRICH)
    doer = Doer()

    async def hang(job: Job) -> None:
        await asyncio.sleep(60)

    worker = Worker(pool, {KIND: hang, JobKind.ENRICH: doer}, clock)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(10):
        while len(doer.done) < 5:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.wait([running])


async def test_stopping_lets_the_job_under_way_end_and_begins_no_other(
    pool: Database, jobs: Jobs, clock: MovableClock, database: asyncpg.Connection
) -> None:
    await plan(pool, jobs, 1, 2)
    begun, finish = asyncio.Event(), asyncio.Event()

    async def work(job: Job) -> None:
        begun.set()
        await finish.wait()

    worker = worker_of(pool, clock, work)
    running = asyncio.create_task(worker.run())
    await begun.wait()
    worker.stop()
    finish.set()
    await asyncio.wait_for(running, 5)
    assert await database.fetchval("SELECT count(*) FROM jobs") == 1


async def test_the_backlog_is_measured(pool: Database, jobs: Jobs, clock: MovableClock) -> None:
    await plan(pool, jobs, 1)
    clock.ahead += MINUTE
    planned_at = clock()
    await plan(pool, jobs, 2, 3)
    await worker_of(pool, clock, Doer(PermanentFailure("no"))).work_one(KIND)
    [backlog] = await jobs.backlogs()
    assert (backlog.kind, backlog.pending, backlog.parked) == ("mail", 2, 1)
    assert backlog.oldest is not None
    assert backlog.oldest >= planned_at  # what is parked waits for nobody


async def test_the_newest_jobs_come_first(pool: Database, jobs: Jobs, clock: MovableClock) -> None:
    await plan(pool, jobs, 1, 2, 3)
    ids = [state.job_id for state in await jobs.newest(2, parked_alone=False)]
    assert len(ids) == 2
    assert ids == sorted(ids, reverse=True)
    await worker_of(pool, clock, Doer(PermanentFailure("no"))).work_one(KIND)
    [parked] = await jobs.newest(3, parked_alone=True)
    assert parked.job_id < min(ids)


async def test_what_is_done_and_what_fails_is_counted(
    pool: Database, jobs: Jobs, clock: MovableClock
) -> None:
    def counted() -> tuple[float, float]:
        done, failed = JOBS_DONE.labels(KIND), JOBS_FAILED.labels(KIND)
        return done._value.get(), failed._value.get()

    done, failed = counted()
    await plan(pool, jobs, *range(4))
    worker = worker_of(
        pool, clock, Doer(RuntimeError("no"), RetryLater(MINUTE), PermanentFailure("no"))
    )
    while await worker.work_one(KIND):
        pass
    # To be asked again later is no failure.
    assert counted() == (done + 1, failed + 2)


async def test_a_service_that_is_away_is_left_alone_for_longer_and_longer(
    pool: Database, jobs: Jobs, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.use_cases.jobs.POLL_SECONDS", 0.05)
    await plan(pool, jobs, *range(20))
    doer = Doer(*[ProviderUnavailable()] * 20)
    running = asyncio.create_task((worker := worker_of(pool, clock, doer)).run())
    started_at = monotonic()
    await until(lambda: len(doer.done) == 4)
    assert monotonic() - started_at >= 0.1 + 0.2 + 0.4  # which lie between the tries
    worker.stop()
    await running


async def test_a_failure_that_nobody_foresaw_breaks_off_no_other_kind(
    pool: Database, jobs: Jobs, clock: MovableClock, database: asyncpg.Connection
) -> None:
    """Let alone a mail that is being sent, and would be sent twice."""
    await plan(pool, jobs, 1)
    await plan(pool, jobs, 2, kind=JobKind.ENRICH)
    begun, finish, ended = asyncio.Event(), asyncio.Event(), []

    async def work(job: Job) -> None:
        begun.set()
        await finish.wait()
        ended.append(job.payload)

    # As a disk that is broken, or a migration under way, would have it.
    await database.execute(
        "ALTER TABLE jobs ADD CONSTRAINT broken CHECK (kind <> 'enrich' OR tries = 0)"
    )
    try:
        worker = Worker(pool, {KIND: work, JobKind.ENRICH: Doer()}, clock)
        running = asyncio.create_task(worker.run())
        await begun.wait()
        await asyncio.sleep(0.3)
        assert not running.done()
        finish.set()
        worker.stop()
        await asyncio.wait_for(running, 5)
    finally:
        await database.execute("ALTER TABLE jobs DROP CONSTRAINT broken")
    assert ended == [1]
