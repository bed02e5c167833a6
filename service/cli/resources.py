"""What commands work with: a checked database, the services, the servers of a running `dev`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dotenv import dotenv_values

from service.cli.console import CommandError, Environment
from service.settings.settings import Settings, read_settings
from service.telemetry.logs import set_up_logging

if TYPE_CHECKING:
    from service.services import Services

DATA: Final = Path(".data")
"""Where `dev` keeps its servers' data, its secrets, and while it runs its servers' addresses."""


def beside_dev(environ: Environment) -> dict[str, str]:
    """Return `environ` over what a running `dev` uses, if there is one."""
    running = DATA / "running.env"
    if not running.exists():
        return {**environ}
    return {**read_file(DATA / "secrets.env"), **read_file(running), **environ}


def settings_beside_dev(environ: Environment) -> Settings:
    """Return the settings, with the servers of a running `dev` if there is one."""
    mailbox = DATA / "mailbox" if (DATA / "running.env").exists() else None
    return read_settings(beside_dev(environ), mailbox)


def read_file(file: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(file).items() if value}


async def check_database(database_url: str, *, tables: bool = True) -> None:
    """Raise CommandError for a fault of the database that waiting does not mend."""
    from service.postgresql import startup_check

    check = startup_check.check_database if tables else startup_check.check_connection
    try:
        await check(database_url)
    except startup_check.DatabaseUnusable as error:
        raise CommandError(error) from error


def apply_migrations(database_url: str) -> list[str]:
    """Apply what is not applied yet; return the names."""
    # yoyo and its driver would take 10 MiB of every worker.
    from service.postgresql import migrations

    try:
        return migrations.apply_migrations(database_url)
    except migrations.MigrationError as error:
        raise CommandError(error) from error


@asynccontextmanager
async def open_services(environ: Environment) -> AsyncIterator["Services"]:
    """Yield the services of the settings' servers."""
    from service import services

    settings = settings_beside_dev(environ)
    await check_database(settings.database_url)
    set_up_logging(settings.log_level, settings.log_format)
    async with services.open_services(settings) as opened:
        yield opened
        await services.invalidate(opened.cache_invalidation)
