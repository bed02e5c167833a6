"""`dev`: serves with embedded PostgreSQL and Valkey, unless the environment names others."""

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from service.cli.console import Environment
from service.cli.keys import write_private, write_secrets
from service.cli.resources import DATA, read_file
from service.cli.serve import listening, serve_on
from service.domain.operators import OperatorError
from service.settings.settings import read_settings


def dev(_: argparse.Namespace, environ: Environment) -> None:
    """Serve with its own PostgreSQL, Valkey and secrets, kept in .data."""
    from service import embedded  # not there in production

    DATA.mkdir(exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(embedded.exclusive(DATA))
            write_secrets(DATA / "secrets.env")
            # Not known yet; all other faults are reported before the servers start.
            unknown = {"DATABASE_URL": "postgresql://", "REDIS_URL": "unix://"}
            defaults = {"WORKERS": "1", **read_file(DATA / "secrets.env"), **unknown}
            settings = read_settings({**defaults, **environ}, DATA / "mailbox")
            listeners = stack.enter_context(listening(settings))
            print("Starting PostgreSQL and Valkey …", flush=True)
            if "DATABASE_URL" not in environ:
                url = stack.enter_context(embedded.postgresql(DATA))
                settings = replace(settings, database_url=url)
            if "REDIS_URL" not in environ:
                url = stack.enter_context(embedded.valkey(DATA))
                settings = replace(settings, redis_url=url)
        except embedded.EmbeddedServerError as error:
            raise OperatorError(error) from error
        from service.postgresql.migrations import apply_migrations  # 10 MiB of every worker

        apply_migrations(settings.database_url)
        write_private(
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
        serve_on(listeners, settings, lambda: print(greeting, flush=True))
