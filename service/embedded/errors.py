"""What the user is told when a server cannot be had."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class EmbeddedServerError(Exception):
    """A server cannot be had; the message is written for the user."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Tell the user, as EmbeddedServerError, that the system is unsupported or refused a call."""
    if sys.platform not in ("linux", "darwin"):
        raise EmbeddedServerError(f"{what} needs Linux or macOS, and this is {sys.platform}.")
    try:
        yield
    except OSError as error:
        raise EmbeddedServerError(f"{what} cannot be had: {error}.") from error
