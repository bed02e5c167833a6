"""The command line: `python -m service COMMAND`."""

import argparse
import asyncio
import getpass
import json
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

from dotenv import dotenv_values

from service.domain.errors import ServiceError
from service.logs import set_up_logging
from service.migrations import MigrationError, apply_migrations
from service.settings import (
    Settings,
    SettingsError,
    read_database_url,
    read_environment,
    read_settings,
)
from service.tokens import SigningKey

if TYPE_CHECKING:
    from service.use_cases.users import Users

DATA: Final = Path(".data")
"""Where `dev` keeps its servers' data, its secrets, and while it runs its servers' addresses."""
Environment = Mapping[str, str]


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
    except (CommandError, MigrationError, ServiceError) as error:
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

    keys = commands.add_parser("keys", help="manage the secrets").add_subparsers(required=True)
    generate = keys.add_parser("generate", help="print new secrets, as lines of an env file")
    generate.add_argument("--file", type=Path, help="write them there, unless the file exists")
    generate.set_defaults(run=_generate_keys)
    return parser


def _serve(_: argparse.Namespace, environ: Environment) -> None:
    settings = read_settings(environ)
    with _listening(settings) as sockets:
        _serve_on(settings, sockets, lambda: None)


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
            settings = read_settings({**defaults, **environ})
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
        apply_migrations(settings.database_url)
        _write_private(
            DATA / "running.env",
            f"DATABASE_URL={settings.database_url}\nREDIS_URL={settings.redis_url}\n",
        )
        stack.callback((DATA / "running.env").unlink, missing_ok=True)
        url = settings.public_url
        greeting = f"""
  Swagger UI  {url}/docs
  ReDoc       {url}/redoc
  OpenAPI     {url}/openapi.json
  Ready?      {url}/health/ready

  Ctrl-C ends it; the data stays in {DATA}/.
"""
        _serve_on(settings, sockets, lambda: print(greeting, flush=True))


def _migrate(_: argparse.Namespace, environ: Environment) -> None:
    set_up_logging("info", "auto")
    applied = apply_migrations(read_database_url({**_of_dev(), **environ}))
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
    elif _write_secrets(parsed.file):
        print(f"New secrets are in {parsed.file}.")
    else:
        print(f"{parsed.file} exists and is left as it is.")


async def _with_users(environ: Environment, work: Callable[["Users"], Awaitable[None]]) -> None:
    """Run `work` with the accounts of the database that the settings name."""
    from service.app import users_alone  # slow, and needless for the other commands

    async with users_alone(read_settings({**_of_dev(), **environ})) as users:
        await work(users)


@contextmanager
def _listening(settings: Settings) -> Iterator[list[socket.socket]]:
    """Yield one listening socket for each worker; raise CommandError where the port is taken."""
    set_up_logging(settings.log_level, settings.log_format)
    with tempfile.TemporaryDirectory(prefix="metrics-") as folder:
        if settings.workers > 1:
            # Read when prometheus_client is imported: the workers then count in common files.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from service import serving  # see the line above

        try:
            yield serving.listen(settings.host, settings.port, settings.workers)
        except serving.PortTaken as error:
            raise CommandError(error) from error


def _serve_on(
    settings: Settings, sockets: list[socket.socket], when_ready: Callable[[], None]
) -> None:
    from service import serving  # see _listening

    serving.serve(settings, sockets, when_ready)


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
    signing_keys = json.dumps({"keys": [SigningKey.generate().to_jwk()]}, separators=(",", ":"))
    return (
        f"SIGNING_KEYS='{signing_keys}'\n"
        f"REFRESH_TOKEN_KEYS={secrets.token_urlsafe(32)}\n"
        f"HASH_KEY={secrets.token_urlsafe(32)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
