"""What the commands share: how they fail, and how they ask."""

import argparse
import sys
from collections.abc import Mapping
from typing import TypeAlias

Environment = Mapping[str, str]
# argparse has no public name for it, and it is generic for type checkers alone.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001


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
