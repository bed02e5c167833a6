"""What rules give: `wanted_rewards`, over orders, repetitions and refunds of events."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.events import Event, with_refunds
from service.domain.programmes import CLOCKS_DIFFER_BY, RewardRule, Rules, Tier, rules_of
from service.domain.referrals import ReferralState, Review
from service.domain.rewards import WantedReward, milestones, wanted_rewards

SIGN_UP = datetime(2026, 11, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
NOW = SIGN_UP + 400 * DAY
PARTICIPANT, PROGRAMME = UUID(int=1), UUID(int=2)
QUALIFY = {"qualify": {"on": "purchase"}}


@dataclass(frozen=True)
class Supposed:
    """A referral that there is not."""

    state: ReferralState = ReferralState.QUALIFIED
    review: Review = Review.NONE
    nth: int | None = 1
    registered_at: datetime = SIGN_UP
    window_ends_at: datetime | None = None


def event(
    number: int,
    *,
    amount: int | None = 1000,
    unit: str = "EUR",
    at: datetime = SIGN_UP + DAY,
    refunds: int | None = None,
) -> Event:
    return Event(
        event_id=UUID(int=number),
        programme_id=PROGRAMME,
        external_id=f"e-{number}",
        participant_id=PARTICIPANT,
        type="purchase" if refunds is None else "refund",
        amount=amount,
        unit=None if amount is None else unit,
        refunds=None if refunds is None else f"e-{refunds}",
        occurred_at=at,
        received_at=at,
    )


def rules(*rewards: dict[str, Any]) -> Rules:
    return rules_of({**QUALIFY, "rewards": rewards})


def share(**members: Any) -> Rules:
    given_by = {"name": "share", "to": "referrer", "on": "purchase", "unit": "EUR"}
    return rules({**given_by, "basis_points": 1000, **members})


def amounts(
    of: Rules, *events: Event, referral: Supposed = Supposed(), now: datetime = NOW
) -> list[int]:
    first = next(iter(with_refunds(events)), None)
    return [one.amount for one in wanted_rewards(of, referral, first, with_refunds(events), now)]


purchases = st.lists(
    st.tuples(
        st.integers(0, 100_000),
        st.integers(-1, 60),
        st.sampled_from(["EUR", "EUR", "USD"]),
        st.lists(st.one_of(st.none(), st.integers(1, 60_000)), max_size=3),
    ),
    min_size=1,
    max_size=6,
)


@given(
    bought=purchases,
    basis_points=st.integers(1, 10_000),
    most=st.none() | st.integers(1, 3000),
    times=st.none() | st.integers(1, 4),
    data=st.data(),
)
def test_a_percentage_is_of_what_is_left_of_the_first_purchases_in_any_order(
    bought: list[tuple[int, int, str, list[int | None]]],
    basis_points: int,
    most: int | None,
    times: int | None,
    data: st.DataObject,
) -> None:
    """Promises 14 and 15: floor(net * basis points / 10,000), and never more than is left."""
    events, expected = [], []
    for number, (amount, days, unit, refunds) in enumerate(bought):
        at = SIGN_UP + days * DAY + timedelta(minutes=number)
        events.append(event(number, amount=amount, unit=unit, at=at))
        for place, refunded in enumerate(refunds):
            refund_id = 1000 + 10 * number + place
            events.append(event(refund_id, amount=refunded, unit=unit, refunds=number))
        net = 0 if None in refunds else max(0, amount - sum(one or 0 for one in refunds))
        if unit == "EUR" and days >= 0 and (net > 0 or not refunds):
            expected.append((at, min(net * basis_points // 10_000, most or net)))
    expected.sort()
    members = {"basis_points": basis_points, "times": times, "max_amount": most}
    of = share(**{name: value for name, value in members.items() if value is not None})
    wanted = [part for _, part in expected[:times] if part]
    shuffled = data.draw(st.permutations(events))
    repeated = with_refunds(shuffled) + with_refunds(events)
    assert amounts(of, *shuffled) == wanted
    found = wanted_rewards(of, Supposed(), None, repeated, NOW)
    assert [one.amount for one in found] == wanted
    for one in found:
        assert one.cause is not None
        assert one.cause.net is not None
        assert one.amount <= one.cause.net


@pytest.mark.parametrize(
    ("nth", "amount"), [(None, 500), (1, 500), (5, 500), (6, 800), (9, 800), (10, 900)]
)
def test_a_tier_begins_with_the_referral_it_names(nth: int | None, amount: int) -> None:
    tiers = [{"from": 6, "amount": 800}, {"from": 10, "amount": 900}]
    friend = {"name": "friend", "to": "referrer", "on": "qualified", "unit": "EUR", "amount": 500}
    assert amounts(rules({**friend, "tiers": tiers}), referral=Supposed(nth=nth)) == [amount]


WELCOME = {"name": "welcome", "to": "referee", "on": "signup", "unit": "points", "amount": 100}
FRIEND = {"name": "friend", "to": "referrer", "on": "qualified", "unit": "EUR", "amount": 500}


@pytest.mark.parametrize(
    ("state", "review", "names"),
    [
        (ReferralState.PENDING, Review.NONE, ["welcome"]),
        (ReferralState.QUALIFIED, Review.NONE, ["welcome", "friend"]),
        (ReferralState.REWARDED, Review.NONE, ["welcome", "friend"]),
        (ReferralState.QUALIFIED, Review.OPEN, ["welcome", "friend"]),
        (ReferralState.REVERSED, Review.NONE, ["welcome"]),
        (ReferralState.REJECTED, Review.NONE, ["welcome"]),
        (ReferralState.REJECTED, Review.REJECTED, []),
        (ReferralState.REVERSED, Review.REJECTED, []),
    ],
)
def test_what_is_for_signing_up_stays_unless_a_review_rejects(
    state: ReferralState, review: Review, names: list[str]
) -> None:
    found = wanted_rewards(
        rules(WELCOME, FRIEND), Supposed(state=state, review=review), None, [], NOW
    )
    assert [one.rule.name for one in found] == names


def held_until(hold_days: int, at: datetime, now: datetime) -> datetime:
    [one] = wanted_rewards(
        share(hold_days=hold_days), Supposed(), None, with_refunds([event(1, at=at)]), now
    )
    return one.available_at


def test_a_hold_counts_from_the_event() -> None:
    at = SIGN_UP + 3 * DAY
    assert held_until(14, at, NOW) == at + 14 * DAY
    assert held_until(0, at, NOW) == at


def test_without_a_hold_a_clock_that_is_ahead_delays_nothing() -> None:
    now = SIGN_UP + 3 * DAY
    assert held_until(0, now + timedelta(minutes=4), now) == now


@pytest.mark.parametrize(
    ("at", "counted"),
    [
        (SIGN_UP - CLOCKS_DIFFER_BY, True),
        (SIGN_UP - CLOCKS_DIFFER_BY - timedelta(seconds=1), False),
        (SIGN_UP + 30 * DAY - timedelta(seconds=1), True),
        (SIGN_UP + 30 * DAY, False),
    ],
)
def test_a_purchase_counts_within_the_days_of_its_rule(at: datetime, counted: bool) -> None:
    assert amounts(share(within_days=30), event(1, at=at)) == ([100] if counted else [])


def test_a_flat_amount_stays_until_nothing_is_left() -> None:
    flat = rules({**FRIEND, "on": "purchase", "name": "each"})
    assert amounts(flat, event(1), event(2, amount=999, refunds=1)) == [500]
    assert amounts(flat, event(1), event(2, amount=1000, refunds=1)) == []
    assert amounts(flat, event(1), event(2, amount=None, refunds=1)) == []
    assert amounts(flat, event(1, amount=None)) == [500]


def test_a_percentage_for_qualifying_is_of_the_event_that_qualifies() -> None:
    part = rules({**FRIEND, "amount": None, "basis_points": 2500})
    assert amounts(part, event(1), event(2, amount=500, refunds=1)) == [125]
    assert amounts(part, event(1, unit="USD")) == []


def test_a_milestone_is_reached_at_its_number_alone() -> None:
    mile = {"to": "referrer", "on": "milestone", "unit": "EUR", "amount": 5000}
    of = rules({**mile, "name": "ten", "at": 10}, {**mile, "name": "fives", "every": 5})

    def names(qualified: int) -> list[str]:
        found: list[WantedReward] = list(milestones(of, qualified, SIGN_UP, NOW))
        assert {one.nth for one in found} <= {qualified}
        return [one.rule.name for one in found]

    assert [names(count) for count in (4, 5, 9, 10, 15)] == [
        [], ["fives"], [], ["ten", "fives"], ["fives"],
    ]  # fmt: skip


def test_a_rule_is_read_from_its_document() -> None:
    [rule] = share(tiers=[{"from": 2, "basis_points": 1}], max_total=3).rewards
    assert rule == RewardRule(
        name="share",
        to="referrer",
        on="purchase",
        unit="EUR",
        basis_points=1000,
        tiers=(Tier(starts_at=2, basis_points=1),),
        max_total=3,
    )
