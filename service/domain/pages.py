"""Keyset pagination: each page starts after the last row of the previous one."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, Self, TypeVar
from uuid import UUID

from service.domain.errors import CursorMalformed

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
T = TypeVar("T")


def _decode(text: str) -> bytes:
    # As base64.b64decode does with "-_", which takes 10 % longer for all of a cursor.
    return binascii.a2b_base64(text.replace("-", "+").replace("_", "/"), strict_mode=True)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A row's place in a list ordered by time, then id, newest first."""

    at: datetime
    row_id: UUID

    def encode(self) -> str:
        """Return the cursor as clients see it: opaque, and safe in a URL."""
        microseconds = (self.at - _EPOCH) // timedelta(microseconds=1)
        raw = microseconds.to_bytes(8, "big") + self.row_id.bytes
        return base64.urlsafe_b64encode(raw).decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return the cursor that `text` encodes; raise CursorMalformed."""
        try:
            raw = _decode(text)
            at = _EPOCH + timedelta(microseconds=int.from_bytes(raw[:8], "big"))
            return cls(at, UUID(bytes=raw[8:]))
        except (binascii.Error, ValueError, OverflowError) as error:
            raise CursorMalformed from error


@dataclass(frozen=True, slots=True)
class BalanceCursor:
    """A balance's place in a list ordered by participant, then unit."""

    participant_id: UUID
    unit: str

    def encode(self) -> str:
        """Return the cursor as clients see it: opaque, and safe in a URL."""
        return base64.urlsafe_b64encode(self.participant_id.bytes + self.unit.encode()).decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return the cursor that `text` encodes; raise CursorMalformed."""
        try:
            raw = _decode(text)
            unit = raw[16:].decode("ascii")
            if "\0" in unit:
                raise CursorMalformed
            return cls(UUID(bytes=raw[:16]), unit)
        except (binascii.Error, ValueError) as error:
            raise CursorMalformed from error


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows of a list, and the cursor to the next ones; None at the end."""

    items: list[T]
    next_cursor: Cursor | BalanceCursor | None

    @classmethod
    def of(
        cls, rows: list[T], limit: int, place: Callable[[T], Cursor | BalanceCursor]
    ) -> "Page[T]":
        """Return a page of `limit` rows, given one more if there is one."""
        more = len(rows) > limit
        items = rows[:limit]
        return cls(items, place(items[-1]) if more else None)
