"""Errors for the user, who has no server then."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class EmbeddedServerError(Exception):
    """A server cannot be started; the message is for the user."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise EmbeddedServerError on an unsupported system, and for the system's own errors."""
    if sys.platform not in ("linux", "darwin"):
        raise EmbeddedServerError(f"{what} needs Linux or macOS, and this is {sys.platform}.")
    try:
        yield
    except OSError as error:
        raise EmbeddedServerError(f"{what} cannot be started: {error}.") from error
