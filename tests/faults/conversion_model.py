"""What the rules of the load's programme make of a referral: a small model of its own.

It knows the rules and nothing of the service. What depends on other referrals is given: which of
its referrer's it was (`nth`), and what a cap has refused.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeAlias

from tests.faults.shop import (
    BASIS_POINTS,
    FRIEND,
    HOLD,
    LATER,
    LATER_FRIEND,
    MINIMUM,
    MOST_SHARED,
    POINTS,
    THANKS,
    TIMES,
    UNIT,
    WELCOME,
)

Row: TypeAlias = Any
"""A row of PostgreSQL."""
SAME_INSTANT: Final = timedelta(minutes=5)
"""A purchase that occurred so long before the sign-up was reported by another clock: it counts."""


class Earned(NamedTuple):
    """What a rule gives somebody for something, after everything that was taken back."""

    rule: str
    cause_id: Any
    participant_id: Any
    unit: str
    amount: int


class _Purchase(NamedTuple):
    event: Row
    net: int


def states_of(referral: Row, events: Iterable[Row]) -> set[str]:
    """Return what may have become of a referral with these events of its referee.

    Once the window has ended the referral is rejected, but by a sweep, at some time; a sweep's
    clock may be wrong, an event's cannot be. `qualified` is also what is rewarded.
    """
    if referral["review"] == "rejected":
        return {"rejected" if referral["nth"] is None else "reversed"}
    reversed_ = False
    for event, net in _purchases(referral, events):
        if event["occurred_at"] < referral["window_ends_at"] and event["amount"] >= MINIMUM:
            if net >= MINIMUM:
                return {"qualified"}
            reversed_ = True
    if reversed_:
        return {"reversed"}
    over = referral["state_changed_at"] >= referral["window_ends_at"]
    return {"rejected"} if over and referral["review"] != "approved" else {"pending"}


def earned_by(
    referral: Row, events: Iterable[Row], refused: Collection[str]
) -> dict[Earned, datetime | None]:
    """Return what there must be of rewards for a referral, and until when each is held.

    None: it is not held. `refused` are rules of which a cap has refused a reward.
    """
    events = list(events)
    to_referrer, to_referee = referral["referrer_id"], referral["referral_id"]
    earned: dict[Earned, datetime | None] = {}
    if referral["review"] != "rejected":
        earned[Earned("welcome", to_referee, to_referee, POINTS, WELCOME)] = None
    if states_of(referral, events) != {"qualified"}:
        return earned
    purchases = _purchases(referral, events)
    if "friend" not in refused:
        amount = LATER_FRIEND if (referral["nth"] or 1) >= LATER else FRIEND
        at = _qualified_at(referral, purchases)
        earned[Earned("friend", to_referee, to_referrer, UNIT, amount)] = at + HOLD
    if "thanks" not in refused:
        earned[Earned("thanks", to_referee, to_referee, UNIT, THANKS)] = None
    left = [one for one in purchases if one.net > 0]
    for event, net in left[:TIMES]:
        part = min(net * BASIS_POINTS // 10_000, MOST_SHARED)
        if part > 0:
            share = Earned("share", event["event_id"], to_referrer, UNIT, part)
            earned[share] = event["occurred_at"] + HOLD
    return earned


def _purchases(referral: Row, events: Iterable[Row]) -> list[_Purchase]:
    """Return the purchases since the sign-up, by when they occurred, and what is left of each."""
    events = list(events)
    refunds = defaultdict(list)
    for event in events:
        if event["type"] == "refund":
            refunds[event["refunds"]].append(event)
    since = referral["registered_at"] - SAME_INSTANT
    bought = [
        event
        for event in events
        if event["type"] == "purchase" and event["occurred_at"] >= since and event["unit"] == UNIT
    ]
    return [
        _Purchase(event, max(0, event["amount"] - sum(_taken(event, refunds[event["id"]]))))
        for event in sorted(bought, key=lambda one: (one["occurred_at"], one["id"]))
    ]


def _taken(event: Row, refunds: Iterable[Row]) -> Iterator[int]:
    for refund in refunds:
        yield event["amount"] if refund["amount"] is None else refund["amount"]


def _qualified_at(referral: Row, purchases: Iterable[_Purchase]) -> datetime:
    moments: Iterator[datetime] = (
        event["occurred_at"]
        for event, net in purchases
        if net >= MINIMUM and event["occurred_at"] < referral["window_ends_at"]
    )
    return next(moments)
