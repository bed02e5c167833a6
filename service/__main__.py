"""The command line: `python -m service COMMAND`."""

import argparse
import asyncio
import gc
import getpass
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from dotenv import dotenv_values

from service.domain.clock import utc_now
from service.domain.errors import ServiceError
from service.domain.scopes import Scope, parse_scopes, scopes_of, to_text
from service.domain.users import Role
from service.logs import set_up_logging
from service.settings import (
    Settings,
    SettingsError,
    read_database,
    read_database_url,
    read_environment,
    read_settings,
    read_signing_keys,
)
from service.tokens import JWKS_MAX_AGE, SigningKey, SigningKeys

if TYPE_CHECKING:
    from service.use_cases.jobs import Jobs
    from service.use_cases.oauth import OAuthClients
    from service.use_cases.users import Users

DATA: Final = Path(".data")
"""Where `dev` keeps its servers' data, its secrets, and while it runs its servers' addresses."""
Environment = Mapping[str, str]
log = logging.getLogger("service")


class CommandError(Exception):
    """A command cannot do its work: one sentence for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 2 where the settings are at fault."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed, read_environment(os.environ))
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

    admin = commands.add_parser("admin", help="manage the admins").add_subparsers(required=True)
    create = admin.add_parser("create", help="make an account with the role admin")
    create.add_argument("email")
    create.set_defaults(run=_create_admin)
    promote = admin.add_parser("promote", help="give an account the role admin")
    promote.add_argument("email")
    promote.set_defaults(run=_promote)

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

    clients = commands.add_parser("clients", help="manage the OAuth clients")
    clients_commands = clients.add_subparsers(required=True)
    create_client = clients_commands.add_parser(
        "create", help="make a client, and print its id and secret"
    )
    create_client.add_argument("name", help="what users are shown")
    create_client.add_argument("--redirect-uri", action="append", default=[], metavar="URI")
    create_client.add_argument(
        "--scope",
        default=to_text(scopes_of(Role.USER)),
        help="between spaces (default: %(default)s)",
    )
    create_client.add_argument(
        "--confidential", action="store_true", help="it runs on a server, and can keep a secret"
    )
    create_client.set_defaults(run=_create_client)
    clients_commands.add_parser("list", help="list them").set_defaults(run=_list_clients)
    delete_client = clients_commands.add_parser("delete", help="give a client no more tokens")
    delete_client.add_argument("client_id")
    delete_client.set_defaults(run=_delete_client)

    keys = commands.add_parser("keys", help="manage the secrets").add_subparsers(required=True)
    generate = keys.add_parser("generate", help="print new secrets, as lines of an env file")
    generate.add_argument("--file", type=Path, help="write them there, unless the file exists")
    generate.set_defaults(run=_generate_keys)
    rotate = keys.add_parser("rotate", help="add the next signing key, drop those of no more use")
    rotate.add_argument("--file", type=Path, help="the env file to change; else print the line")
    rotate.set_defaults(run=_rotate_keys)
    return parser


def _limit(text: str) -> int:
    limit = int(text)
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
    from service import serving  # slow, and needless for the other commands

    serving.work_off_jobs(settings)


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
    from service.app import jobs_alone  # see _with_users

    database = read_database({**_of_dev(), **environ})
    await _check_database(database[0])
    async with jobs_alone(*database) as jobs:
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
    database_url = read_database_url({**_of_dev(), **environ})
    asyncio.run(_check_database(database_url, tables=False))
    applied = _apply_migrations(database_url)
    print("\n".join(f"applied {name}" for name in applied) or "nothing to apply")


def _create_admin(parsed: argparse.Namespace, environ: Environment) -> None:
    """Make an admin; the password comes from ADMIN_PASSWORD, the terminal or standard input."""
    if (password := environ.get("ADMIN_PASSWORD")) is None:
        interactive = sys.stdin.isatty()
        password = getpass.getpass("Password: ") if interactive else sys.stdin.readline().strip()

    asyncio.run(_with_users(environ, lambda users: users.make_admin(parsed.email, password)))
    print(f"{parsed.email} is an admin.")


def _promote(parsed: argparse.Namespace, environ: Environment) -> None:
    asyncio.run(_with_users(environ, lambda users: users.promote(parsed.email)))
    print(f"{parsed.email} is an admin.")


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
    keys, lifetime = read_signing_keys(
        {**environ, **(_read_file(parsed.file) if parsed.file else {})}
    )
    keys = keys.rotated(utc_now(), lifetime)
    line = _signing_keys_line(keys)
    if parsed.file is None:
        print(line)
    else:
        lines = parsed.file.read_text().splitlines()
        kept = [old for old in lines if not old.startswith("SIGNING_KEYS=")]
        _write_private(parsed.file, "\n".join([*kept, line, ""]))
    print(
        f"Restart every process within {JWKS_MAX_AGE.seconds // 60} minutes; "
        f"the new key signs from {keys.keys[-1].signs_from.isoformat(timespec='seconds')}.",
        file=sys.stderr,
    )


def _create_client(parsed: argparse.Namespace, environ: Environment) -> None:
    try:
        scopes = parse_scopes(parsed.scope)
    except ValueError as error:
        raise CommandError(f"The scopes are {to_text(Scope)}; {error}.") from error
    if not parsed.redirect_uri and not parsed.confidential:
        raise CommandError("A public client needs a --redirect-uri.")

    async def create(clients: "OAuthClients") -> None:
        client, secret = await clients.create(
            parsed.name, parsed.redirect_uri, scopes, public=not parsed.confidential
        )
        print(f"client_id={client.client_id}")
        if secret is not None:
            print(f"client_secret={secret}  # shown this once")

    try:
        asyncio.run(_with_clients(environ, create))
    except ValueError as error:
        raise CommandError(error) from error


def _list_clients(_: argparse.Namespace, environ: Environment) -> None:
    async def show(clients: "OAuthClients") -> None:
        for client in await clients.list_all():
            kind = "confidential" if client.is_confidential else "public"
            print(
                client.client_id, kind, repr(client.name), to_text(client.scopes), sep="\t", end=""
            )
            print("", *client.redirect_uris, sep="\t")

    asyncio.run(_with_clients(environ, show))


def _delete_client(parsed: argparse.Namespace, environ: Environment) -> None:
    async def delete(clients: "OAuthClients") -> None:
        if not await clients.delete(parsed.client_id):
            raise CommandError(f"There is no client {parsed.client_id}.")
        print(f"{parsed.client_id} gets no more tokens.")

    asyncio.run(_with_clients(environ, delete))


async def _with_clients(
    environ: Environment, work: Callable[["OAuthClients"], Awaitable[None]]
) -> None:
    """Run `work` with the OAuth clients of the database that the settings name."""
    from service.app import clients_alone  # see _with_users

    database = read_database({**_of_dev(), **environ})
    await _check_database(database[0])
    async with clients_alone(*database) as clients:
        await work(clients)


async def _with_users(environ: Environment, work: Callable[["Users"], Awaitable[None]]) -> None:
    """Run `work` with the accounts of the database that the settings name."""
    from service.app import users_alone  # slow, and needless for the other commands

    settings = _settings_beside_dev(environ)
    await _check_database(settings.database_url)
    async with users_alone(settings) as users:
        await work(users)


def _apply_migrations(database_url: str) -> list[str]:
    # Here, because yoyo and its driver would hold 10 MiB of every worker.
    from service.migrations import MigrationError, apply_migrations

    try:
        return apply_migrations(database_url)
    except MigrationError as error:
        raise CommandError(error) from error


async def _check_database(database_url: str, *, tables: bool = True) -> None:
    """Raise CommandError where the database cannot be used, whatever one waits for."""
    from service import database_check  # slow, and needless for other commands

    check = database_check.check_database if tables else database_check.check_connection
    try:
        await check(database_url)
    except database_check.DatabaseUnusable as error:
        raise CommandError(error) from error


@contextmanager
def _listening(settings: Settings) -> Iterator[list[list[socket.socket]]]:
    """Yield the listening sockets of each worker; raise CommandError where the port is taken."""
    set_up_logging(settings.log_level, settings.log_format)
    with tempfile.TemporaryDirectory(prefix="metrics-") as folder:
        if settings.workers > 1:
            # Read when prometheus_client is imported: the workers then count in common files.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        # Importing makes nothing that could be collected, and looking for it takes a tenth of a
        # second. serving.py enables it.
        gc.disable()
        from service import serving  # see PROMETHEUS_MULTIPROC_DIR

        try:
            yield serving.listen(settings.host, settings.port, settings.workers)
        except serving.PortTaken as error:
            raise CommandError(error) from error


def _serve_on(
    settings: Settings, sockets: list[list[socket.socket]], when_ready: Callable[[], None]
) -> None:
    from service import serving  # see _listening

    try:
        serving.serve(settings, sockets, when_ready)
    except serving.WorkersFail as error:
        raise CommandError(error) from error


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
