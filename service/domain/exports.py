"""Exporting whole tables: which there are, and from which place on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple
from uuid import UUID

from service.domain.errors import InvalidInput


class Exported(StrEnum):
    """What can be exported. Email addresses, network addresses and devices are in none of it."""

    PARTICIPANTS = "participants"
    CODES = "codes"
    REFERRALS = "referrals"
    EVENTS = "events"
    DECISIONS = "decisions"
    REWARDS = "rewards"
    TRANSFERS = "transfers"
    BALANCES = "balances"


_FIRST: Final = UUID(int=0)
LARGEST_SEQUENCE: Final = 2**31 - 1
COLUMNS: Final[dict[Exported, Sequence[str]]] = {
    Exported.PARTICIPANTS: (
        *("id", "programme", "external_id", "user_id", "trusted", "blocked_at", "erased_at"),
        *("public_name", "created_at"),
    ),
    Exported.CODES: (
        *("id", "programme", "participant_id", "external_id", "code", "created_at", "expires_at"),
        *("max_uses", "ended_at", "end_reason"),
    ),
    Exported.REFERRALS: (
        *("id", "programme", "version", "referrer_id", "referrer", "referee", "code", "state"),
        *("reason", "review", "flags", "sequence", "nth", "registered_at", "window_ends_at"),
    ),
    Exported.EVENTS: (
        *("id", "programme", "event_id", "participant_id", "external_id", "type", "amount"),
        *("unit", "refunds", "occurred_at", "received_at"),
    ),
    Exported.DECISIONS: (
        *("id", "referral_id", "sequence", "state", "review", "reason", "made_by", "event_id"),
        *("detail", "decided_at"),
    ),
    Exported.REWARDS: (
        *("id", "programme", "rule", "version", "to", "participant_id", "referral_id"),
        *("cause_id", "nth", "unit", "amount", "reversed", "state", "held", "available_at"),
        "created_at",
    ),
    Exported.TRANSFERS: (
        *("id", "programme", "kind", "from", "to", "participant_id", "unit", "amount"),
        *("reward_id", "external_id", "cancels", "note", "made_by", "created_at"),
    ),
    Exported.BALANCES: (
        *("id", "programme", "participant_id", "external_id", "unit", "pending", "available"),
        "redeemed",
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """After which row an export goes on. `within` is the second half of an id of two."""

    row_id: UUID
    within: int | str | None = None

    @classmethod
    def parse(cls, table: Exported, text: str | None) -> "Place":
        """Return the place after the row with this id, or before the first; raise InvalidInput."""
        second = _SECOND_HALVES.get(table)
        if text is None:
            return cls(_FIRST, None if second is None else second.first)
        try:
            if second is None:
                return cls(UUID(text))
            row_id, _, within = text.partition("/")
            return cls(UUID(row_id), second.read(within))
        except ValueError as error:
            raise InvalidInput("This is not the id of an exported row.", field="after") from error

    @property
    def arguments(self) -> tuple[UUID | int | str, ...]:
        return (self.row_id,) if self.within is None else (self.row_id, self.within)


def _sequence(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:11]) <= LARGEST_SEQUENCE):
        raise ValueError(text)
    return int(text)


def _unit(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise ValueError(text)
    return text


class _SecondHalf(NamedTuple):
    first: int | str
    read: Callable[[str], int | str]


_SECOND_HALVES: Final = {
    Exported.DECISIONS: _SecondHalf(0, _sequence),
    Exported.BALANCES: _SecondHalf("", _unit),
}
