"""The judge of conversions sees what is wrong, and nothing else."""

from typing import Any

import pytest

from tests.faults.conversion_judge import (
    wrong_cancellations,
    wrong_events,
    wrong_movements,
    wrong_reviews,
    wrong_sign_ups,
)
from tests.faults.history import Call, Kind
from tests.faults.shop import UNIT

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


REFERRAL = {"code": "A", "referrer_id": "1", "flags": []}


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
        ([signed_up(201)], {**REFERRAL, "flags": ["same-device"]}),
    ],
)
def test_a_referee_who_is_lost_or_referred_twice_is_wrong(calls: list[Call], stored: Any) -> None:
    assert [*wrong_sign_ups({"anna": calls}, {"anna": stored})] != []


PAID = {"transfer_id": "t", "id": "payout", "whose": "anna", "unit": UNIT, "amount": -300}


def asked(
    status: int, kind: Kind = "redeem", at: float = 0.0, available: int | None = None, **other: Any
) -> Call:
    body = {"id": "payout", "external_id": "anna", "unit": UNIT, "amount": 300} | other
    answer: dict[str, Any] = {"id": "t"} if status in {200, 201} else {}
    if available is not None:
        answer["available"] = available
    return Call(kind=kind, body=body, status=status, answer=answer, begun=at, ended=at + 1)


@pytest.mark.parametrize(
    ("calls", "stored"),
    [
        ([asked(201), asked(200), asked(200)], [PAID]),
        ([asked(0)], []),
        ([asked(0)], [PAID]),
        ([asked(409, available=299)], []),
        ([asked(409, available=-5), asked(201, at=2)], [PAID]),
        ([asked(409, available=0, at=0.5), asked(201)], [PAID]),  # at once
        ([asked(201), asked(409, amount=1)], [PAID]),
        ([asked(201, "adjust", amount=-300)], [PAID]),
    ],
)
def test_movements_that_are_made_once_are_right(calls: list[Call], stored: list[Any]) -> None:
    assert [*wrong_movements({"payout": calls}, stored)] == []


@pytest.mark.parametrize(
    ("calls", "stored"),
    [
        ([asked(201)], []),
        ([asked(201)], [PAID, PAID]),
        ([asked(201), asked(201)], [PAID]),
        ([asked(200)], [PAID]),
        ([asked(201)], [{**PAID, "transfer_id": "another"}]),
        ([asked(201)], [{**PAID, "amount": -299}]),
        ([asked(201)], [{**PAID, "amount": 300}]),
        ([asked(201)], [{**PAID, "whose": "bob"}]),
        ([asked(409, available=300)], []),
        ([asked(409, available=0)], [PAID]),
        ([asked(201), asked(409, available=0, at=2)], [PAID]),
        ([asked(201), asked(409)], [PAID]),
        ([asked(0), asked(409, amount=1)], []),
        ([asked(201)], [PAID, {**PAID, "id": "unasked"}]),
    ],
)
def test_movements_that_are_lost_repeated_or_refused_for_nothing_are_wrong(
    calls: list[Call], stored: list[Any]
) -> None:
    assert [*wrong_movements({"payout": calls}, stored)] != []


REDEEMED = {"transfer_id": "t", "amount": -300, "cancels": None}
BACK = {"transfer_id": "back", "amount": 300, "cancels": "t"}


def cancelled(status: int, made: str = "back") -> Call:
    return Call(kind="cancel", body={}, about="t", status=status, answer={"id": made})


@pytest.mark.parametrize(
    ("calls", "stored"),
    [
        ([cancelled(201), cancelled(200)], [REDEEMED, BACK]),
        ([cancelled(0)], [REDEEMED, BACK]),
        ([cancelled(0)], [REDEEMED]),
    ],
)
def test_a_payout_that_is_cancelled_once_is_right(calls: list[Call], stored: list[Any]) -> None:
    assert [*wrong_cancellations({"t": calls}, stored)] == []


@pytest.mark.parametrize(
    ("calls", "stored"),
    [
        ([cancelled(201)], [REDEEMED]),
        ([cancelled(201), cancelled(201)], [REDEEMED, BACK]),
        ([cancelled(201)], [REDEEMED, BACK, BACK]),
        ([cancelled(201, "another")], [REDEEMED, BACK]),
        ([cancelled(201)], [REDEEMED, {**BACK, "amount": 299}]),
        ([cancelled(201)], [BACK]),
        ([], [REDEEMED, BACK]),
    ],
)
def test_a_payout_that_is_cancelled_twice_or_not_is_wrong(
    calls: list[Call], stored: list[Any]
) -> None:
    assert [*wrong_cancellations({"t": calls}, stored)] != []


def reviewed(status: int, decision: str = "approve") -> Call:
    return Call(kind="review", body={"decision": decision}, about="r", status=status)


def turned(*reviews: str) -> list[Any]:
    return [{"referral_id": "r", "review": review} for review in reviews]


@pytest.mark.parametrize(
    ("calls", "decisions"),
    [
        ([], turned("none", "open")),
        ([reviewed(201), reviewed(200)], turned("none", "approved", "approved")),
        ([reviewed(201), reviewed(201, "reject")], turned("open", "rejected", "approved")),
        ([reviewed(0)], turned("none")),
        ([reviewed(0)], turned("none", "approved")),
    ],
)
def test_reviews_that_are_made_once_are_right(calls: list[Call], decisions: list[Any]) -> None:
    assert [*wrong_reviews({"r": calls}, decisions)] == []


@pytest.mark.parametrize(
    ("calls", "decisions"),
    [
        ([], turned("none", "approved")),
        ([reviewed(201)], turned("none")),
        ([reviewed(201)], turned("none", "rejected")),
        ([reviewed(201), reviewed(201)], turned("none", "approved")),
        ([reviewed(200)], turned("none", "approved", "rejected")),
    ],
)
def test_reviews_that_are_lost_or_counted_twice_are_wrong(
    calls: list[Call], decisions: list[Any]
) -> None:
    assert [*wrong_reviews({"r": calls}, decisions)] != []
