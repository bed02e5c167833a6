"""The one way to ask what time it is, and to write it."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

Clock = Callable[[], datetime]
"""Returns the present moment, aware and in UTC. Tests pass one that they can move."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def moment_text(moment: datetime) -> str:
    """Return a time in UTC as responses and commands show it (RFC 3339)."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def plain_text(value: object) -> str:
    """Return a time or an id as JSON has it, for `json.dumps(default=)`; raise TypeError."""
    match value:
        case datetime():
            return moment_text(value)
        case UUID():
            return str(value)
    raise TypeError(type(value))
