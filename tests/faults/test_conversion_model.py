"""The model of the load's programme knows its rules."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.faults.conversion_model import SAME_INSTANT, earned_by, states_of
from tests.faults.shop import (
    FRIEND,
    HOLD,
    LATER,
    LATER_FRIEND,
    MINIMUM,
    MOST_SHARED,
    POINTS,
    THANKS,
    UNIT,
    WELCOME,
    WITHIN,
)

SIGNED_UP = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
MADE: Mapping[str, Any] = {
    "referral_id": "referee",
    "referrer_id": "referrer",
    "review": "none",
    "nth": None,
    "registered_at": SIGNED_UP,
    "window_ends_at": SIGNED_UP + WITHIN,
    "state_changed_at": SIGNED_UP,
}
SWEPT = {**MADE, "state_changed_at": SIGNED_UP + WITHIN}
REFUSED = {**MADE, "review": "rejected"}
FIRST = {**MADE, "nth": 1}


def bought(amount: int = MINIMUM, after: timedelta = timedelta(hours=1), **more: Any) -> Any:
    event = {"id": "order", "type": "purchase", "amount": amount, "unit": UNIT, "refunds": None}
    return {"event_id": event["id"], **event, "occurred_at": SIGNED_UP + after, **more}


def refunded(amount: int | None = None, order: str = "order") -> Any:
    return bought(id="refund", type="refund", refunds=order) | {"amount": amount}


@pytest.mark.parametrize(
    ("referral", "events", "state"),
    [
        (MADE, [], "pending"),
        (SWEPT, [], "rejected"),
        (MADE, [bought(MINIMUM - 1)], "pending"),
        (MADE, [bought(unit="USD")], "pending"),
        (MADE, [bought(type="visit")], "pending"),
        (MADE, [bought()], "qualified"),
        (SWEPT, [bought()], "qualified"),
        (MADE, [refunded()], "pending"),
        (MADE, [refunded(), bought()], "reversed"),
        (MADE, [bought(), refunded(1)], "reversed"),
        (MADE, [bought(MINIMUM + 1), refunded(1)], "qualified"),
        (MADE, [bought(), refunded(), bought(id="another")], "qualified"),
        (MADE, [bought(after=-SAME_INSTANT)], "qualified"),
        (MADE, [bought(after=-SAME_INSTANT - timedelta(seconds=1))], "pending"),
        (SWEPT, [bought(after=WITHIN)], "rejected"),
        (REFUSED, [bought()], "rejected"),
        ({**REFUSED, "nth": 1}, [bought()], "reversed"),
        ({**SWEPT, "review": "approved"}, [], "pending"),
        ({**MADE, "review": "open"}, [bought()], "qualified"),
    ],
)
def test_the_model_knows_what_becomes_of_a_referral(referral: Any, events: Any, state: str) -> None:
    assert states_of(referral, events) == {state}


HALF = 123  # 1234 basis points of half of the minimum
WHOLE = 246
QUALIFIED = {"welcome": WELCOME, "friend": FRIEND, "thanks": THANKS, "share": WHOLE}


@pytest.mark.parametrize(
    ("referral", "events", "refused", "expected"),
    [
        (MADE, [], (), {"welcome": WELCOME}),
        (REFUSED, [bought()], (), {}),
        (FIRST, [bought()], (), QUALIFIED),
        ({**MADE, "nth": LATER}, [bought()], (), {**QUALIFIED, "friend": LATER_FRIEND}),
        (FIRST, [bought()], ("friend", "thanks"), {"welcome": WELCOME, "share": WHOLE}),
        (FIRST, [bought(), refunded()], (), {"welcome": WELCOME}),
        (FIRST, [bought(2 * MINIMUM), refunded(MINIMUM)], (), QUALIFIED),
        (FIRST, [bought(10 * MINIMUM)], (), {**QUALIFIED, "share": MOST_SHARED}),
        (FIRST, [bought(), bought(1, id="tiny")], (), QUALIFIED),
        (FIRST, [bought(), bought(type="visit", id="visit")], (), QUALIFIED),
    ],
)
def test_the_model_knows_what_is_earned(
    referral: Any, events: Any, refused: Any, expected: dict[str, int]
) -> None:
    earned = earned_by(referral, events, refused)
    assert {one.rule: one.amount for one in earned} == expected


def test_the_model_knows_who_earns_and_until_when_it_waits() -> None:
    earned = earned_by(FIRST, [bought()], ())
    to = {one.rule: (one.participant_id, one.unit) for one in earned}
    assert to == {
        "welcome": ("referee", POINTS),
        "friend": ("referrer", UNIT),
        "thanks": ("referee", UNIT),
        "share": ("referrer", UNIT),
    }
    until = SIGNED_UP + timedelta(hours=1) + HOLD
    held = {one.rule: moment for one, moment in earned.items() if moment is not None}
    assert held == {"friend": until, "share": until}


def test_a_share_is_of_the_first_purchases_of_which_something_is_left() -> None:
    events = [
        bought(MINIMUM // 2, timedelta(hours=hour), id=f"{hour}", event_id=hour) for hour in (1, 2)
    ]
    events += [bought(after=timedelta(hours=hour), id=f"{hour}", event_id=hour) for hour in (3, 4)]
    shares = {
        one.cause_id: one.amount
        for one in earned_by(FIRST, [*events, refunded(order="1")], ())
        if one.rule == "share"
    }
    assert shares == {2: HALF, 3: WHOLE}
