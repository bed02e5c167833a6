"""The command line: `python -m service COMMAND`."""

import argparse
import asyncio
import gc
import json
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from dotenv import dotenv_values

from service.cli import clients, users
from service.cli.console import CommandError, Environment
from service.domain.clock import utc_now
from service.domain.errors import ServiceError
from service.security.tokens import JWKS_MAX_AGE, SigningKey, SigningKeys
from service.settings.risks import risks_of
from service.settings.schema import SettingsError, load
from service.settings.settings import (
    DatabaseSettings,
    KeySettings,
    ServerSettings,
    Settings,
    read_environment,
    read_settings,
)
from service.telemetry.logs import set_up_logging

if TYPE_CHECKING:
    from service.server.supervisor import Listeners
    from service.use_cases.jobs import Jobs
    from service.use_cases.oauth_clients import OAuthClients
    from service.use_cases.personal_data import PersonalData
    from service.use_cases.users import Users

DATA: Final = Path(".data")
"""Where `dev` keeps its servers' data, its secrets, and while it runs its servers' addresses."""
log = logging.getLogger("service")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 2 where the settings are at fault."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed, read_environment(os.environ) if parsed.reads_settings else {})
    except SettingsError as error:
        print(f"The settings are at fault:\n{error}", file=sys.stderr)
        return 2
    except (CommandError, ServiceError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # as a shell has it for what ended by Ctrl-C
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__)
    parser.set_defaults(reads_settings=True)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="serve the API, on all cores")
    serve.set_defaults(run=_serve)
    worker = commands.add_parser(
        "worker", help="do the jobs (mails, verifications), and serve nothing"
    )
    worker.set_defaults(run=_work)
    dev = commands.add_parser("dev", help="serve with servers and secrets of its own, in .data")
    dev.set_defaults(run=_dev)
    migrate = commands.add_parser("migrate", help="apply the migrations in sql/migrations")
    migrate.set_defaults(run=_migrate)

    jobs = commands.add_parser("jobs", help="see and retry jobs").add_subparsers(required=True)
    list_jobs = jobs.add_parser("list", help="list the newest jobs that are not done")
    list_jobs.add_argument("--parked", action="store_true", help="only those that were given up")
    list_jobs.add_argument("--limit", type=_limit, default=100, metavar="N")
    list_jobs.set_defaults(run=_list_jobs)
    retry = jobs.add_parser("retry", help="try parked jobs again")
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("job_id", type=UUID, nargs="?")
    which.add_argument("--all", action="store_true")
    retry.set_defaults(run=_retry_jobs)

    clients.add_commands(commands, _with_clients)
    users.add_commands(commands, _with_users)

    keys = commands.add_parser("keys", help="manage the secrets").add_subparsers(required=True)
    generate = keys.add_parser("generate", help="print new secrets, as lines of an env file")
    generate.add_argument("--file", type=Path, help="write them there, unless the file exists")
    # It may be what makes the file that ENV_FILE names.
    generate.set_defaults(run=_generate_keys, reads_settings=False)
    rotate = keys.add_parser("rotate", help="add the next signing key, drop those of no more use")
    rotate.add_argument(
        "--file", type=Path, help="the env file to change; otherwise the line is printed"
    )
    rotate.set_defaults(run=_rotate_keys)
    return parser


def _limit(text: str) -> int:
    limit = int(text) if text.isdecimal() else 0
    if not 1 <= limit <= 1_000_000:
        raise argparse.ArgumentTypeError("must lie between 1 and 1000000")
    return limit


def _serve(_: argparse.Namespace, environ: Environment) -> None:
    settings = read_settings(environ)
    with _listening(settings) as sockets:
        asyncio.run(_check_database(settings.database_url))
        if settings.mail is None:
            log.warning(
                "SMTP_URL is not set: nobody can confirm an email address, change it, "
                "or set a new password for a forgotten one."
            )
        _serve_on(settings, sockets, lambda: None)


def _work(_: argparse.Namespace, environ: Environment) -> None:
    settings = _settings_beside_dev(environ)
    if not (settings.mail or settings.hunter or settings.enrichment):
        raise CommandError(
            "There is nothing to do: none of SMTP_URL, HUNTER_API_KEY, ENRICHMENT_API_KEY is set."
        )
    asyncio.run(_check_database(settings.database_url))
    set_up_logging(settings.log_level, settings.log_format)
    _tell_risks(settings)
    from service.server import supervisor  # slow, and needless for the other commands

    supervisor.work_off_jobs(settings)


def _list_jobs(parsed: argparse.Namespace, environ: Environment) -> None:
    async def show(jobs: "Jobs") -> None:
        for job in await jobs.newest(parsed.limit, parked_alone=parsed.parked):
            parked, due = job.parked_at, job.due_at
            state = f"parked {parked:%FT%TZ}" if parked else f"due {due:%FT%TZ}" if due else "due"
            print(job.job_id, job.kind, state, f"{job.tries} tries", job.last_error or "", sep="\t")

    asyncio.run(_with_jobs(environ, show))


def _retry_jobs(parsed: argparse.Namespace, environ: Environment) -> None:
    async def retry(jobs: "Jobs") -> None:
        retried = await jobs.retry(parsed.job_id)
        if parsed.job_id and not retried:
            raise CommandError(f"There is no parked job {parsed.job_id}.")
        print(f"{retried} to be tried again")

    asyncio.run(_with_jobs(environ, retry))


async def _with_jobs(environ: Environment, work: Callable[["Jobs"], Awaitable[None]]) -> None:
    """Run `work` with the jobs of the database that the settings name."""
    from service.services import open_jobs  # see _with_users

    settings = load(DatabaseSettings, {**_of_dev(), **environ})
    await _check_database(settings.database_url)
    async with open_jobs(settings.database_url, settings.database_prepared_statements) as jobs:
        await work(jobs)


def _dev(_: argparse.Namespace, environ: Environment) -> None:
    """Serve with embedded PostgreSQL and Valkey, unless the environment names other servers."""
    from service import embedded  # not there in production

    DATA.mkdir(exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(embedded.exclusive(DATA))
            _write_secrets(DATA / "secrets.env")
            # Not known yet; what else is wrong is told before the servers start.
            unknown = {"DATABASE_URL": "postgresql://", "REDIS_URL": "unix://"}
            defaults = {"WORKERS": "1", **_read_file(DATA / "secrets.env"), **unknown}
            settings = read_settings({**defaults, **environ}, DATA / "mailbox")
            sockets = stack.enter_context(_listening(settings))
            print("Starting PostgreSQL and Valkey …", flush=True)
            if "DATABASE_URL" not in environ:
                url = stack.enter_context(embedded.postgresql(DATA))
                settings = replace(settings, database_url=url)
            if "REDIS_URL" not in environ:
                url = stack.enter_context(embedded.valkey(DATA))
                settings = replace(settings, redis_url=url)
        except embedded.EmbeddedServerError as error:
            raise CommandError(error) from error
        _apply_migrations(settings.database_url)
        _write_private(
            DATA / "running.env",
            f"DATABASE_URL={settings.database_url}\nREDIS_URL={settings.redis_url}\n",
        )
        stack.callback((DATA / "running.env").unlink, missing_ok=True)
        url = settings.public_url
        in_folder = settings.mail and isinstance(settings.mail.delivery, Path)
        mailbox = f"  Mailbox     {url}/dev/mailbox\n" if in_folder else ""
        greeting = f"""
  Swagger UI  {url}/docs
  ReDoc       {url}/redoc
  OpenAPI     {url}/openapi.json
  Ready?      {url}/health/ready
{mailbox}
  Ctrl-C ends it; the data stays in {DATA}/.
"""
        _serve_on(settings, sockets, lambda: print(greeting, flush=True))


def _migrate(_: argparse.Namespace, environ: Environment) -> None:
    set_up_logging("info", "auto")
    database_url = load(DatabaseSettings, {**_of_dev(), **environ}).database_url
    asyncio.run(_check_database(database_url, tables=False))
    applied = _apply_migrations(database_url)
    print("\n".join(f"applied {name}" for name in applied) or "nothing to apply")


def _generate_keys(parsed: argparse.Namespace, _: Environment) -> None:
    if parsed.file is None:
        print(_new_secrets(), end="")
        return
    try:
        written = _write_secrets(parsed.file)
    except OSError as error:
        raise CommandError(f"Cannot write {parsed.file}: {error.strerror}.") from error
    print(
        f"New secrets are in {parsed.file}."
        if written
        else f"{parsed.file} exists and is left as it is."
    )


def _rotate_keys(parsed: argparse.Namespace, environ: Environment) -> None:
    """Write SIGNING_KEYS with a new key, which signs when all processes and others know it."""
    if parsed.file and not parsed.file.is_file():
        raise CommandError(f"There is no file {parsed.file}.")
    settings = load(KeySettings, {**environ, **(_read_file(parsed.file) if parsed.file else {})})
    keys = settings.signing_keys.rotated(utc_now(), settings.access_token_ttl)
    line = _signing_keys_line(keys)
    if parsed.file is None:
        print(line)
    else:
        lines = parsed.file.read_text().splitlines()
        kept = [old for old in lines if not old.startswith("SIGNING_KEYS=")]
        try:
            _write_private(parsed.file, "\n".join([*kept, line, ""]))
        except OSError as error:
            raise CommandError(f"Cannot write {parsed.file}: {error.strerror}.") from error
    print(
        f"Restart every process within {JWKS_MAX_AGE.seconds // 60} minutes; "
        f"the new key signs from {keys.keys[-1].signs_from.isoformat(timespec='seconds')}.",
        file=sys.stderr,
    )


def _with_clients(environ: Environment, work: Callable[["OAuthClients"], Awaitable[None]]) -> None:
    """Run `work` with the OAuth clients of the database that the settings name."""
    from service.services import open_clients  # see _with_users

    environ = {**_of_dev(), **environ}
    settings = load(ServerSettings if environ.get("REDIS_URL") else DatabaseSettings, environ)
    redis_url = settings.redis_url if isinstance(settings, ServerSettings) else None

    async def run() -> None:
        await _check_database(settings.database_url)
        set_up_logging("info", "auto")
        async with open_clients(
            settings.database_url, settings.database_prepared_statements, redis_url
        ) as clients:
            await work(clients)

    asyncio.run(run())


def _with_users(
    environ: Environment, work: Callable[["Users", "PersonalData"], Awaitable[None]]
) -> None:
    """Run `work` with the accounts of the database that the settings name."""
    from service.services import invalidate, open_services  # slow, and needless for the others

    settings = _settings_beside_dev(environ)

    async def run() -> None:
        await _check_database(settings.database_url)
        set_up_logging(settings.log_level, settings.log_format)
        async with open_services(settings) as services:
            await work(services.users, services.personal_data)
            await invalidate(services.cache_invalidation)

    asyncio.run(run())


def _apply_migrations(database_url: str) -> list[str]:
    # Here, because yoyo and its driver would hold 10 MiB of every worker.
    from service.postgresql.migrations import MigrationError, apply_migrations

    try:
        return apply_migrations(database_url)
    except MigrationError as error:
        raise CommandError(error) from error


async def _check_database(database_url: str, *, tables: bool = True) -> None:
    """Raise CommandError where the database cannot be used, whatever one waits for."""
    from service.postgresql import startup_check  # slow, and needless for other commands

    check = startup_check.check_database if tables else startup_check.check_connection
    try:
        await check(database_url)
    except startup_check.DatabaseUnusable as error:
        raise CommandError(error) from error


@contextmanager
def _listening(settings: Settings) -> Iterator[list["Listeners"]]:
    """Yield what each worker listens on; raise CommandError where a port is taken."""
    set_up_logging(settings.log_level, settings.log_format)
    with tempfile.TemporaryDirectory(prefix="metrics-") as folder:
        if settings.workers > 1:
            # Read when prometheus_client is imported: the workers then count in common files.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        # Importing makes nothing that could be collected, and looking for it takes a tenth of a
        # second. supervisor.py enables it.
        gc.disable()
        from service.server import supervisor  # see PROMETHEUS_MULTIPROC_DIR

        try:
            yield supervisor.listeners_of(settings)
        except supervisor.PortTaken as error:
            raise CommandError(error) from error


def _serve_on(
    settings: Settings, sockets: list["Listeners"], when_ready: Callable[[], None]
) -> None:
    from service.server import supervisor  # see _listening

    _tell_risks(settings)
    try:
        supervisor.serve(settings, sockets, when_ready)
    except supervisor.WorkersFail as error:
        raise CommandError(error) from error


def _tell_risks(settings: Settings) -> None:
    for risk in risks_of(settings):
        log.warning(risk)


def _settings_beside_dev(environ: Environment) -> Settings:
    """Return the settings, those of a running `dev` if there is one."""
    of_dev = _of_dev()
    return read_settings({**of_dev, **environ}, DATA / "mailbox" if of_dev else None)


def _of_dev() -> dict[str, str]:
    """Return the environment of a running `dev`, so that commands beside it find its servers."""
    running = DATA / "running.env"
    return {**_read_file(DATA / "secrets.env"), **_read_file(running)} if running.exists() else {}


def _read_file(file: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(file).items() if value}


def _write_secrets(file: Path) -> bool:
    """Write new secrets to the file; return False, and leave it, where it exists."""
    if file.exists():
        return False
    _write_private(file, _new_secrets())
    return True


def _write_private(file: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=file.parent)
    with open(handle, "w") as temporary:  # noqa: PTH123  # mkstemp gives a descriptor
        temporary.write(text)
    Path(name).rename(file)


def _new_secrets() -> str:
    return (
        f"{_signing_keys_line(SigningKeys([SigningKey.generate()]))}\n"
        f"REFRESH_TOKEN_KEYS={secrets.token_urlsafe(32)}\n"
        f"HASH_KEY={secrets.token_urlsafe(32)}\n"
    )


def _signing_keys_line(keys: SigningKeys) -> str:
    return f"SIGNING_KEYS='{json.dumps(keys.to_jwks(), separators=(',', ':'))}'"


if __name__ == "__main__":
    sys.exit(main())
