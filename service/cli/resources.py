"""What commands work with: the servers of a running `dev`, and the services."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dotenv import dotenv_values

from service.cli.console import Environment
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


@asynccontextmanager
async def open_services(environ: Environment) -> AsyncIterator["Services"]:
    """Yield the services of the settings' servers."""
    from service import services
    from service.postgresql.startup_check import check_database

    settings = settings_beside_dev(environ)
    await check_database(settings.database_url)
    set_up_logging(settings.log_level, settings.log_format)
    async with services.open_services(settings) as opened:
        yield opened
        await services.invalidate(opened.cache_invalidation)
