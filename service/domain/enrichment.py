"""What a data provider knows about a user: the person and the company."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

LONGEST_TEXT: Final = 2000
LONGEST_NAME: Final = 64
MOST_MEMBERS: Final = 100
DEEPEST: Final = 6
_LARGEST_NUMBER: Final = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrichment:
    """Clearbit's shape of a person and a company, each None where nothing is known."""

    person: dict[str, Any] | None
    company: dict[str, Any] | None
    source: str
    fetched_at: datetime


def clean(document: Any) -> dict[str, Any] | None:
    """Return a provider's object as it can be stored and shown; None if it is no object.

    Limited in length, depth and number, and without unprintable characters, which can deceive
    PostgreSQL, terminals and pages.
    """
    return _clean_object(document, 1) if isinstance(document, dict) else None


def _clean(value: Any, depth: int) -> Any:
    match value:
        case bool() | None:
            return value
        case int() | float():
            return value if abs(value) < _LARGEST_NUMBER else None  # nor is NaN, nor infinity
        case str():
            printable = "".join(
                char if char.isprintable() else " " for char in value[:LONGEST_TEXT]
            )
            return printable.strip()
        case list() if depth < DEEPEST:
            return [_clean(item, depth + 1) for item in value[:MOST_MEMBERS]]
        case dict() if depth < DEEPEST:
            return _clean_object(value, depth + 1)
        case _:
            return None


def _clean_object(members: dict[str, Any], depth: int) -> dict[str, Any]:
    kept = [name for name in members if name.isprintable() and len(name) <= LONGEST_NAME]
    return {name: _clean(members[name], depth) for name in kept[:MOST_MEMBERS]}
