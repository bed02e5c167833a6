"""`migrate`: brings the database up to date."""

import argparse

from service.cli.console import Environment
from service.cli.resources import beside_dev
from service.settings.schema import load
from service.settings.settings import DatabaseSettings
from service.telemetry.logs import set_up_logging


async def migrate(_: argparse.Namespace, environ: Environment) -> None:
    """Apply the migrations in sql/migrations."""
    from service.postgresql.migrations import apply_migrations
    from service.postgresql.startup_check import check_database

    set_up_logging("info", "auto")
    database_url = load(DatabaseSettings, beside_dev(environ)).database_url
    await check_database(database_url, tables=False)
    applied = apply_migrations(database_url)
    print("\n".join(f"applied {name}" for name in applied) or "nothing to apply")
