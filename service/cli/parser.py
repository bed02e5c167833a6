"""The command line: `python -m service COMMAND`."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from service.cli import (
    clients,
    dev,
    jobs,
    keys,
    ledger,
    migrate,
    programmes,
    serve,
    users,
    webhooks,
    worker,
)
from service.cli.console import Commands
from service.domain.errors import ServiceError
from service.domain.operators import OperatorError
from service.settings.schema import SettingsError
from service.settings.settings import read_environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 2 for invalid settings."""
    parsed = _parser().parse_args(arguments)
    try:
        work = parsed.run(parsed, read_environment(os.environ) if parsed.reads_settings else {})
        if work is not None:
            asyncio.run(work)
    except SettingsError as error:
        print(f"Invalid settings:\n{error}", file=sys.stderr)
        return 2
    except (OperatorError, ServiceError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # what shells return for a command that Ctrl-C ended
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service", description="The referral service.")
    parser.set_defaults(reads_settings=True)
    commands = Commands(parser)
    commands.add("serve", serve.serve)
    commands.add("worker", worker.work)
    commands.add("dev", dev.dev)
    commands.add("migrate", migrate.migrate)
    for module in (jobs, clients, programmes, webhooks, users, keys, ledger):
        module.add_commands(commands)
    return parser
