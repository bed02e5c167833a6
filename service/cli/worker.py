"""`worker`: a process for jobs alone."""

import argparse
import asyncio

from service.cli.console import Environment
from service.cli.resources import settings_beside_dev
from service.cli.serve import log_risks
from service.telemetry.logs import set_up_logging


def work(_: argparse.Namespace, environ: Environment) -> None:
    """Run jobs (webhooks, mails, verifications) without serving the API."""
    settings = settings_beside_dev(environ)
    import uvloop

    from service.postgresql.startup_check import check_database
    from service.server import worker

    asyncio.run(check_database(settings.database_url))
    set_up_logging(settings.log_level, settings.log_format)
    log_risks(settings)
    uvloop.run(worker.work_off_jobs(settings))
