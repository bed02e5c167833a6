"""`assess`, the one function that decides what becomes of a referral."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.events import Event, with_refunds
from service.domain.programmes import (
    CLOCKS_DIFFER_BY,
    Minimum,
    Qualification,
    Rules,
    Supposed,
    assess,
    steps,
)
from service.domain.referrals import ReferralReason, ReferralState, Review

SIGN_UP = datetime(2026, 11, 1, 12, tzinfo=UTC)
NOW = SIGN_UP + timedelta(days=40)
DAY = timedelta(days=1)
PARTICIPANT, PROGRAMME = UUID(int=1), UUID(int=2)
ON_PURCHASE = Rules(
    qualify=Qualification(on="purchase", minimum=Minimum(amount=2000, unit="EUR"), within_days=30)
)
PENDING, QUALIFIED = ReferralState.PENDING, ReferralState.QUALIFIED
REJECTED, REVERSED = ReferralState.REJECTED, ReferralState.REVERSED
ARROWS = {
    (PENDING, QUALIFIED),
    (PENDING, REJECTED),
    (QUALIFIED, REVERSED),
    (REVERSED, QUALIFIED),
    (REJECTED, QUALIFIED),
    (REJECTED, PENDING),
}
"""The transitions that a referral without rewards can make."""


def event(
    number: int,
    *,
    amount: int | None = 2000,
    unit: str | None = "EUR",
    at: datetime = SIGN_UP + DAY,
    refunds: int | None = None,
    type: str = "purchase",  # noqa: A002
) -> Event:
    return Event(
        event_id=UUID(int=number),
        programme_id=PROGRAMME,
        external_id=f"e-{number}",
        participant_id=PARTICIPANT,
        type="refund" if refunds is not None else type,
        amount=amount,
        unit=unit if amount is not None else None,
        refunds=None if refunds is None else f"e-{refunds}",
        occurred_at=at,
        received_at=at,
    )


def referral(state: ReferralState = PENDING, review: Review = Review.NONE) -> Supposed:
    return Supposed(
        registered_at=SIGN_UP,
        window_ends_at=ON_PURCHASE.window_end(SIGN_UP),
        state=state,
        review=review,
    )


@dataclass
class Told:
    """A referral that hears of events one by one, as the service does."""

    at: Supposed
    path: list[ReferralState]

    def hear(self, events: list[Event], now: datetime) -> None:
        wanted = assess(ON_PURCHASE, self.at, with_refunds(events), now)
        for state, _ in steps(self.at.state, wanted):
            assert (self.at.state, state) in ARROWS
            self.at = replace(self.at, state=state)
            self.path.append(state)


def told_of(events: list[Event], now: datetime = SIGN_UP + 2 * DAY) -> Told:
    told = Told(referral(), [PENDING])
    known: dict[str, Event] = {}
    for one in events:
        known.setdefault(one.external_id, one)  # an id counts once
        told.hear(list(known.values()), now)
    return told


facts = st.lists(
    st.builds(
        lambda kind, amount, hours, unit: (kind, amount, SIGN_UP + timedelta(hours=hours), unit),
        st.sampled_from(["purchase", "refund", "whole refund", "visit"]),
        st.sampled_from([0, 1, 500, 1999, 2000, 2001, 5000]),
        st.integers(-2, 31 * 24),
        st.sampled_from(["EUR", "USD"]),
    ),
    min_size=2,
    max_size=12,
)


@given(facts=facts, data=st.data())
def test_the_same_events_in_every_order_and_number_give_the_same_state(
    facts: list[tuple[str, int, datetime, str]], data: st.DataObject
) -> None:
    events = []
    for number, (kind, amount, at, unit) in enumerate(facts):
        refunds = data.draw(st.integers(0, len(facts) - 1)) if "refund" in kind else None
        given_amount = None if kind == "whole refund" else amount
        type_ = kind if kind in {"purchase", "visit"} else "refund"
        events.append(
            event(number, amount=given_amount, unit=unit, at=at, refunds=refunds, type=type_)
        )
    in_order = told_of(events)
    shuffled = data.draw(st.permutations(events))
    repeated = shuffled + data.draw(st.lists(st.sampled_from(events), max_size=4))
    assert told_of(repeated).at.state is in_order.at.state
    assert told_of(list(reversed(events))).at.state is in_order.at.state


@pytest.mark.parametrize(
    ("events", "path"),
    [
        ([], [PENDING]),
        ([event(1)], [PENDING, QUALIFIED]),
        ([event(1), event(2, amount=None, refunds=1)], [PENDING, QUALIFIED, REVERSED]),
        ([event(2, amount=None, refunds=1), event(1)], [PENDING, QUALIFIED, REVERSED]),
        (
            [event(1), event(2, amount=None, refunds=1), event(3)],
            [PENDING, QUALIFIED, REVERSED, QUALIFIED],
        ),
        ([event(1, amount=2500), event(2, amount=500, refunds=1)], [PENDING, QUALIFIED]),
        ([event(1, amount=2500), event(2, amount=501, refunds=1)], [PENDING, QUALIFIED, REVERSED]),
        (
            [event(1, amount=2500), event(2, amount=9999, unit="USD", refunds=1)],
            [PENDING, QUALIFIED],
        ),
        ([event(1, amount=1999)], [PENDING]),
        ([event(1, unit="USD")], [PENDING]),
        ([event(1, type="visit")], [PENDING]),
        ([event(1, at=SIGN_UP - CLOCKS_DIFFER_BY)], [PENDING, QUALIFIED]),
        ([event(1, at=SIGN_UP - CLOCKS_DIFFER_BY - timedelta(seconds=1))], [PENDING]),
        ([event(1, at=SIGN_UP + 30 * DAY)], [PENDING]),
        ([event(1, at=SIGN_UP + 30 * DAY - timedelta(seconds=1))], [PENDING, QUALIFIED]),
    ],
)
def test_events_lead_a_referral_along(events: list[Event], path: list[ReferralState]) -> None:
    assert told_of(events).path == path


def test_what_has_not_qualified_in_time_is_rejected_until_a_late_event_arrives() -> None:
    told = told_of([])
    told.hear([], NOW)
    assert told.path == [PENDING, REJECTED]
    told.hear([event(1)], NOW)
    assert told.at.state is QUALIFIED


def test_a_review_decides_over_events() -> None:
    rejected = referral(QUALIFIED, Review.REJECTED)
    wanted = assess(ON_PURCHASE, rejected, [event(1)], SIGN_UP + 2 * DAY)
    assert (wanted.state, wanted.reason) == (REVERSED, ReferralReason.REVIEW_REJECTED)
    still = assess(ON_PURCHASE, referral(REJECTED, Review.REJECTED), [event(1)], SIGN_UP + 2 * DAY)
    assert still.state is REJECTED
    approved = assess(
        ON_PURCHASE, referral(REJECTED, Review.APPROVED), [event(1)], SIGN_UP + 2 * DAY
    )
    assert approved.state is QUALIFIED


def test_a_sign_up_qualifies_at_once_where_that_is_the_rule() -> None:
    rules = Rules(qualify=Qualification(on="signup"))
    assert assess(rules, referral(), [], NOW).state is QUALIFIED
