"""`serve`: the API, and what `dev` shares with it."""

import argparse
import asyncio
import gc
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.cli.console import Environment
from service.server.listeners import Listeners, listeners_of
from service.settings.risks import risks_of
from service.settings.settings import Settings, read_settings
from service.telemetry.logs import set_up_logging

log = logging.getLogger("service")


def serve(_: argparse.Namespace, environ: Environment) -> None:
    """Serve the API on all cores."""
    settings = read_settings(environ)
    with listening(settings) as listeners:
        from service.postgresql.startup_check import check_database

        asyncio.run(check_database(settings.database_url))
        if settings.mail is None:
            log.warning(
                "SMTP_URL is not set: nobody can confirm or change an email address, or reset a "
                "forgotten password."
            )
        serve_on(listeners, settings)


@contextmanager
def listening(settings: Settings) -> Iterator[list[Listeners]]:
    """Yield what each worker listens on; raise OperatorError."""
    set_up_logging(settings.log_level, settings.log_format)
    # The imports to come make no garbage, and looking for some takes a tenth of a second.
    # worker.py enables it again.
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="metrics-") as folder:
        if settings.workers > 1:
            # Read when prometheus_client is imported: the workers then count in common files.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        yield listeners_of(settings)


def serve_on(
    listeners: list[Listeners], settings: Settings, when_ready: Callable[[], None] = lambda: None
) -> None:
    from service.server import supervisor  # see PROMETHEUS_MULTIPROC_DIR

    log_risks(settings)
    supervisor.serve(settings, listeners, when_ready)


def log_risks(settings: Settings) -> None:
    for risk in risks_of(settings):
        log.warning(risk)
