"""The judge of conversions sees what is wrong, and nothing else."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.faults.conversion_judge import SAME_INSTANT, states_of, wrong_events, wrong_sign_ups
from tests.faults.conversions import MINIMUM, UNIT, WITHIN
from tests.faults.history import Call

SIGNED_UP = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
MADE: Mapping[str, Any] = {
    "registered_at": SIGNED_UP,
    "window_ends_at": SIGNED_UP + WITHIN,
    "state_changed_at": SIGNED_UP,
}
SWEPT = {**MADE, "state_changed_at": SIGNED_UP + WITHIN}


def bought(amount: int = MINIMUM, after: timedelta = timedelta(hours=1), **more: Any) -> Any:
    event = {"id": "order", "type": "purchase", "amount": amount, "unit": UNIT, "refunds": None}
    return {**event, "occurred_at": SIGNED_UP + after, **more}


def refunded(amount: int | None = None) -> Any:
    return bought(id="refund", type="refund", refunds="order") | {"amount": amount}


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
    ],
)
def test_the_model_knows_what_becomes_of_a_referral(referral: Any, events: Any, state: str) -> None:
    assert states_of(referral, events) == {state}


PURCHASE = {"id": "order", "type": "purchase", "external_id": "anna", "amount": 1, "unit": UNIT}
STORED = {**PURCHASE, "referee": "anna"}


def reported(status: int, *, at: str = "09:30", **other: Any) -> Call:
    answer = {"event": {"received_at": at}} if status in {200, 201} else {}
    return Call(kind="report", body=PURCHASE | other, status=status, answer=answer)


@pytest.mark.parametrize(
    ("calls", "stored"),
    [
        ([reported(201), reported(200), reported(200)], STORED),
        ([reported(0), reported(200)], STORED),
        ([reported(0)], STORED),
        ([reported(0)], None),
        ([reported(201), reported(409, amount=2)], STORED),
    ],
)
def test_events_that_are_stored_once_are_right(calls: list[Call], stored: Any) -> None:
    assert [*wrong_events({"order": calls}, {"order": stored})] == []


@pytest.mark.parametrize(
    ("calls", "stored"),
    [
        ([reported(201)], None),
        ([reported(201)], {**STORED, "amount": 2}),
        ([reported(201)], {**STORED, "referee": "bob"}),
        ([reported(201), reported(201)], STORED),
        ([reported(200)], STORED),
        ([reported(201), reported(200, at="09:31")], STORED),
        ([reported(201), reported(200, amount=2)], STORED),
        ([reported(201), reported(409)], STORED),
        ([reported(0), reported(409, amount=2)], None),
    ],
)
def test_events_that_are_lost_or_counted_twice_are_wrong(calls: list[Call], stored: Any) -> None:
    assert [*wrong_events({"order": calls}, {"order": stored})] != []


REFERRAL = {"code": "A", "referrer_id": "1"}


def signed_up(status: int, code: str = "A", referrer_id: str = "1") -> Call:
    answer = {"referrer_id": referrer_id}
    return Call(kind="sign_up", body={"code": code}, status=status, answer=answer)


@pytest.mark.parametrize(
    ("calls", "stored"),
    [
        ([signed_up(201), signed_up(200), signed_up(409, "B")], REFERRAL),
        ([signed_up(0), signed_up(409, "B")], REFERRAL),
        ([signed_up(0)], None),
    ],
)
def test_a_referee_who_is_referred_once_is_right(calls: list[Call], stored: Any) -> None:
    assert [*wrong_sign_ups({"anna": calls}, {"anna": stored})] == []


@pytest.mark.parametrize(
    ("calls", "stored"),
    [
        ([signed_up(201)], None),
        ([signed_up(201), signed_up(201, "B")], REFERRAL),
        ([signed_up(201), signed_up(200, "B")], REFERRAL),
        ([signed_up(201), signed_up(409)], REFERRAL),
        ([signed_up(201, referrer_id="2")], REFERRAL),
        ([signed_up(0, "B")], REFERRAL),
        ([signed_up(0), signed_up(409, "B")], None),
    ],
)
def test_a_referee_who_is_lost_or_referred_twice_is_wrong(calls: list[Call], stored: Any) -> None:
    assert [*wrong_sign_ups({"anna": calls}, {"anna": stored})] != []
