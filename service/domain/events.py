"""What participants did, as a company or this service reports it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from service.domain.errors import InvalidInput

REFUND: Final = "refund"
LARGEST_AMOUNT: Final = 10**12
"""In the minor units of a currency, or in a company's own unit."""
AHEAD: Final = timedelta(minutes=5)
"""How far a reported time may lie ahead: clocks differ."""
BACK: Final = timedelta(days=366)


def check_moment(moment: datetime | None, now: datetime, field: str) -> None:
    """Raise InvalidInput unless a company may report the time: not far ahead, not long ago."""
    if moment is None:
        return
    if moment > now + AHEAD:
        raise InvalidInput("This is more than 5 minutes in the future.", field=field)
    if moment < now - BACK:
        raise InvalidInput("This is more than 366 days in the past.", field=field)


def check_refund(
    refunded_type: str, refunded_unit: str | None, unit: str | None, parent: str = ""
) -> None:
    """Raise InvalidInput unless an event of that type and unit can be refunded in the unit."""
    if refunded_type == REFUND:
        raise InvalidInput("A refund cannot be refunded.", field=f"{parent}refunds")
    if unit is not None and unit != refunded_unit:
        raise InvalidInput("This must be the unit of the refunded event.", field=f"{parent}unit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a participant did. It never changes; what takes it back is another event.

    `external_id` is the company's id of it, `refunds` the one that a refund takes back. What is
    known of its refunds: whether one takes back all (`taken_back`), and the sum of the others.
    """

    event_id: UUID
    programme_id: UUID
    external_id: str
    participant_id: UUID
    type: str
    amount: int | None
    unit: str | None
    refunds: str | None
    occurred_at: datetime
    received_at: datetime
    refunded: int = 0
    """The sum of all partial refunds, which may exceed the amount."""
    taken_back: bool = False
    """Whether a refund without an amount takes back all of it."""

    @property
    def net(self) -> int | None:
        """What is left of the amount; None for an event without one."""
        if self.amount is None:
            return None
        return 0 if self.taken_back else max(0, self.amount - self.refunded)

    @property
    def is_taken_back(self) -> bool:
        """Whether nothing is left of it."""
        return self.taken_back or (self.refunded > 0 and self.net == 0)


class Outcome(StrEnum):
    """What an event did."""

    QUALIFIED = "qualified"
    REWARDED = "rewarded"
    REVERSED = "reversed"
    CHANGED = "changed"
    RECORDED = "recorded"
    NO_REFERRAL = "no-referral"
    BEFORE_SIGN_UP = "before-sign-up"
    OUTSIDE_WINDOW = "outside-window"
    BELOW_MINIMUM = "below-minimum"
    UNIT_DIFFERS = "unit-differs"
    CAP_REACHED = "cap-reached"
    UNDER_REVIEW = "under-review"
    ERASED = "erased"


def with_refunds(events: Iterable[Event]) -> list[Event]:
    """Return the events that are no refunds, each with what is known of its refunds.

    A refund of another participant's event, or in another unit, takes nothing back.
    """
    events = list(events)
    refunds = [event for event in events if event.refunds is not None]
    return [_refunded(event, refunds) for event in events if event.refunds is None]


def _refunded(event: Event, refunds: Iterable[Event]) -> Event:
    of_event = [
        refund
        for refund in refunds
        if refund.refunds == event.external_id and refund.participant_id == event.participant_id
    ]
    return replace(
        event,
        refunded=sum(
            refund.amount
            for refund in of_event
            if refund.amount is not None and refund.unit == event.unit
        ),
        taken_back=any(refund.amount is None for refund in of_event),
    )
