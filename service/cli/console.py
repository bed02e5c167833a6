"""What the commands share: how they fail, and how they ask."""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import TypeAlias

Environment = Mapping[str, str]
# argparse has no public name for it, and it is generic for type checkers alone.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001


def add_command(
    group: Commands, name: str, run: Callable[[argparse.Namespace, Environment], None], what: str
) -> argparse.ArgumentParser:
    """Add a command that does `what` by `run`; return its parser, for its arguments."""
    parser = group.add_parser(name, help=what, description=what)
    parser.set_defaults(run=run)
    return parser


class CommandError(Exception):
    """A command cannot do its work: one sentence for the user."""


def confirm(question: str, *, yes: bool) -> None:
    """Ask on the terminal unless `yes`; raise CommandError unless the answer is yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(f"{question} Answer on a terminal, or add --yes.")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise CommandError("Nothing was changed.")
