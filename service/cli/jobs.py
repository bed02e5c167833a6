"""`jobs`: the jobs that are not done."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from service.cli.console import Commands, Environment, between
from service.cli.resources import beside_dev
from service.domain.clock import utc_now
from service.domain.operators import OperatorError
from service.settings.schema import load
from service.settings.settings import DatabaseSettings

if TYPE_CHECKING:
    from service.use_cases.jobs import Jobs


def add_commands(commands: Commands) -> None:
    jobs = commands.group("jobs", "List and retry jobs.")
    listing = jobs.add("list", _list)
    listing.add_argument("--parked", action="store_true", help="only jobs that were given up")
    listing.add_argument(
        "--limit",
        type=between(1, 1_000_000),
        default=100,
        metavar="N",
        help="how many jobs to list at most (default: 100)",
    )
    retry = jobs.add("retry", _retry)
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("job_id", type=UUID, nargs="?", metavar="JOB_ID")
    which.add_argument("--all", action="store_true", help="all parked jobs")
    retry.usage = "%(prog)s [-h] (JOB_ID | --all)"


async def _list(parsed: argparse.Namespace, environ: Environment) -> None:
    """List the newest jobs that are not done."""
    async with _open_jobs(environ) as jobs:
        for job in await jobs.newest(parsed.limit, parked_alone=parsed.parked):
            parked, due = job.parked_at, job.due_at
            state = f"parked {parked:%FT%TZ}" if parked else f"due {due:%FT%TZ}" if due else "due"
            tries = f"{job.tries} attempt{'' if job.tries == 1 else 's'}"
            print(job.job_id, job.kind, state, tries, job.last_error or "", sep="\t")


async def _retry(parsed: argparse.Namespace, environ: Environment) -> None:
    """Retry parked jobs."""
    async with _open_jobs(environ) as jobs:
        retried = await jobs.retry(parsed.job_id)
    if parsed.job_id and not retried:
        raise OperatorError(f"There is no parked job {parsed.job_id}.")
    print(f"{retried} job{'' if retried == 1 else 's'} will be retried.")


@asynccontextmanager
async def _open_jobs(environ: Environment) -> AsyncIterator["Jobs"]:
    from service.postgresql import database
    from service.postgresql.startup_check import check_database
    from service.use_cases.jobs import Jobs

    settings = load(DatabaseSettings, beside_dev(environ))
    url = settings.database_url
    await check_database(url)
    async with database.connect(url, 1, settings.database_prepared_statements) as opened:
        yield Jobs(opened, (), utc_now)
