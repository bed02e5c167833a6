"""What the commands share: how they are declared, how they fail, and how they ask."""

import argparse
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from service.domain.operators import OperatorError

Environment = Mapping[str, str]
Command = Callable[[argparse.Namespace, Environment], Coroutine[Any, Any, None] | None]


class Commands:
    """The commands of a parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(self, name: str, run: Command) -> argparse.ArgumentParser:
        """Add a command whose help is the docstring of `run`; return its parser, for arguments."""
        parser = self._commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        parser.set_defaults(run=run)
        return parser

    def group(self, name: str, what: str) -> "Commands":
        """Add a command with commands of its own; return these."""
        return Commands(self._commands.add_parser(name, help=what, description=what))


def between(low: int, high: int) -> Callable[[str], int]:
    """Return the type of an argument that is a number from `low` to `high`."""

    def read(text: str) -> int:
        number = int(text) if text.isdecimal() else -1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"must be between {low} and {high}")
        return number

    return read


def confirm(question: str, *, yes: bool) -> None:
    """Ask on the terminal unless `yes`; raise OperatorError unless the answer is yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise OperatorError(f"{question} Answer on a terminal, or add --yes.")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise OperatorError("Nothing was changed.")
