"""The one way to ask what time it is."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the present moment, aware and in UTC. Tests pass one that they can move."""


def utc_now() -> datetime:
    """Return the present moment in UTC."""
    return datetime.now(UTC)
