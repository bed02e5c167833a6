"""The one way to ask what time it is."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the present moment, aware and in UTC. Tests pass one that they can move."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def moment_text(moment: datetime) -> str:
    """Return a time in UTC as responses and commands show it (RFC 3339)."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
