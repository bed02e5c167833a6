"""The same facts in every order and number make the same of a referral, through the database, and
`try` says beforehand what that is."""

import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uuid6 import uuid7

from service.domain.errors import InvalidInput
from service.domain.events import Event
from service.domain.programmes import DEFAULT_PROGRAMME, DEFAULT_PROGRAMME_ID, Supposed, rules_of
from service.domain.referrals import ReferralReason
from service.domain.rewards import Trial
from tests.sql.company import DAY, ON_PURCHASE, Company
from tests.sql.racing import NOW as SIGNED_UP_AT

RULES: Final[dict[str, dict[str, Any]]] = {
    "minimum and window": ON_PURCHASE,
    "any purchase": {"qualify": {"on": "purchase"}, "rewards": []},
    "sign-up": {"qualify": {"on": "signup"}, "rewards": []},
    "rewards": {
        **ON_PURCHASE,
        "rewards": [
            {"name": "friend", "to": "referrer", "on": "qualified", "unit": "EUR", "amount": 500},
            {"name": "share", "to": "referrer", "on": "purchase", "unit": "EUR"}
            | {"basis_points": 1234, "max_amount": 400, "times": 2, "within_days": 20},
            {"name": "each", "to": "referee", "on": "purchase", "unit": "points", "amount": 3},
            {"name": "visit", "to": "referee", "on": "visit", "unit": "points", "amount": 1},
        ],
    },
    "holds": {
        **ON_PURCHASE,
        "rewards": [
            {"name": "friend", "to": "referrer", "on": "qualified", "unit": "EUR", "amount": 500}
            | {"hold_days": 1},
            {"name": "part", "to": "referee", "on": "qualified", "unit": "EUR"}
            | {"basis_points": 1000, "hold_days": 2},
            {"name": "share", "to": "referrer", "on": "purchase", "unit": "EUR"}
            | {"basis_points": 1234, "times": 1, "hold_days": 1},
            {"name": "early", "to": "referrer", "on": "purchase", "unit": "EUR", "amount": 9}
            | {"times": 2, "within_days": 1},
        ],
    },
}
REWARDS: Final = """
    SELECT rule, state, sum(amount - reversed)::int AS worth
      FROM rewards
     WHERE referral_id = $1
       AND state <> 'reversed'
     GROUP BY rule, state
"""
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Fact:
    """An event, or the sign-up, or that the sweep comes by. `refunds` is the place of a fact."""

    kind: Literal["purchase", "visit", "refund", "sign-up", "sweep"]
    amount: int | None = None
    unit: str = "EUR"
    hours: int = 0
    refunds: int = 0


@st.composite
def stories(draw: st.DrawFn) -> tuple[bool, list[Fact]]:
    """Draw whether the window has passed by now, and what happened: most of it matters."""
    late = draw(st.booleans())
    hours = st.sampled_from([0, 1, 2, 3, 24, 47, -2, *([30 * 24] if late else [])])
    units = st.sampled_from(["EUR", "EUR", "EUR", "EUR", "USD"])
    purchase = st.builds(
        Fact,
        kind=st.just("purchase"),
        amount=st.sampled_from([5000, 5000, 5000, 2000, 1999, 0, None]),
        unit=units,
        hours=hours,
    )
    refund = st.builds(
        Fact,
        kind=st.just("refund"),
        amount=st.sampled_from([None, 3001, 3001, 3000, 1, 0]),
        unit=units,
        hours=hours,
        refunds=st.sampled_from([0, 0, 1, 2, 3]),
    )
    visit = st.builds(Fact, kind=st.just("visit"), hours=hours)
    facts = draw(st.lists(purchase, min_size=2, max_size=3))
    facts += draw(st.lists(refund, min_size=1, max_size=4))
    facts += draw(st.lists(visit, max_size=1))
    return late, [*facts, Fact("sign-up"), Fact("sweep")]


def members_of(prefix: str, place: int, fact: Fact) -> dict[str, Any]:
    return {
        "event_id": f"{prefix}-{place}",
        "type": fact.kind,
        "amount": fact.amount,
        "unit": None if fact.amount is None else fact.unit,
        "refunds": f"{prefix}-{fact.refunds}" if fact.kind == "refund" else None,
        "occurred_at": SIGNED_UP_AT + timedelta(hours=fact.hours),
    }


async def tell(
    company: Company, code: str, facts: Sequence[Fact], order: Sequence[int]
) -> dict[str, Any]:
    """Have the company report the facts in that order; return what has become of the referral."""
    prefix = f"s-{next(_numbers)}"
    for place in order:
        fact = facts[place]
        if fact.kind == "sign-up":
            await company.sign_up(code, prefix, clicked_at=SIGNED_UP_AT, signed_up_at=SIGNED_UP_AT)
        elif fact.kind == "sweep":
            await company.services.referrals.reject_overdue()
        else:
            with suppress(InvalidInput):  # a refund of what cannot be refunded so
                await company.report(who=prefix, **members_of(prefix, place, fact))
    await company.services.referrals.reject_overdue()
    referral_id = await company.id_of(prefix)
    given = {
        (row["rule"], row["state"]): row["worth"]
        for row in await company.database.fetch(REWARDS, referral_id)
    }
    return {**await company.look(referral_id), "rewards": given}


async def try_out(company: Company, rules: dict[str, Any], facts: Sequence[Fact]) -> Trial:
    """Ask what the rules would make of the facts."""
    events = [
        Event(
            event_id=uuid7(),
            programme_id=DEFAULT_PROGRAMME_ID,
            external_id=members.pop("event_id"),
            participant_id=DEFAULT_PROGRAMME_ID,
            received_at=company.clock.now,
            **members,
        )
        for place, fact in enumerate(facts)
        if fact.kind not in {"sign-up", "sweep"}
        for members in [members_of("tried", place, fact)]
    ]
    window_ends_at = rules_of(rules).window_end(SIGNED_UP_AT)
    supposed = Supposed(registered_at=SIGNED_UP_AT, window_ends_at=window_ends_at)
    return await company.services.programmes.try_rules(DEFAULT_PROGRAMME, rules, supposed, events)


@dataclass(frozen=True)
class Scene:
    company: Company
    rules: dict[str, Any]
    code: str


@pytest.fixture(params=RULES)
async def scene(company: Company, request: pytest.FixtureRequest) -> Scene:
    rules = RULES[request.param]
    await company.set_rules(rules, 2)
    return Scene(company, rules, await company.share("u-1", expires_in_days=366))


@settings(
    deadline=None,
    database=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(story=stories(), data=st.data())
async def test_every_order_of_the_same_facts_ends_as_trying_them_said(
    scene: Scene, story: tuple[bool, list[Fact]], data: st.DataObject
) -> None:
    """Without the second half of THAT_DECIDE, or where a refund looks for its event only when it
    arrives, some order would end elsewhere."""
    company = scene.company
    late, facts = story
    company.clock.now = SIGNED_UP_AT + (41 * DAY if late else 2 * DAY)
    wanted = await try_out(company, scene.rules, facts)
    order = data.draw(st.permutations(range(len(facts))))
    again = data.draw(st.lists(st.sampled_from(order), max_size=4))
    for told in (range(len(facts)), order, [*order, *again], list(reversed(order))):
        found = await tell(company, scene.code, facts, list(told))
        reason = wanted.reason
        # A hold that ended, and begins again with a later purchase, leaves its trace.
        if scene.rules is RULES["holds"] and found["reason"] == "refunded":
            reason = {"qualified": ReferralReason.REFUNDED}.get(wanted.state, reason)
        assert (found["state"], found["reason"]) == (wanted.state, reason)
        worth: Counter[tuple[str, str]] = Counter()
        for want in wanted.rewards:
            state = "available" if want.available_at <= company.clock.now else "pending"
            worth[want.rule.name, state] += want.amount
        assert found["rewards"] == worth
    await company.standing("u-1")


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_a_hold_begins_again_with_the_purchase_that_counts_instead_of_a_refunded_one(
    company: Company, order: Sequence[int]
) -> None:
    """Whether or not it had ended before the refund was reported."""
    await company.set_rules(RULES["holds"], 2)
    code = await company.share("u-1", expires_in_days=366)
    first, later = (Fact("purchase", 5000, hours=hours) for hours in (1, 47))
    facts = [first, later, Fact("refund"), Fact("sign-up")]
    company.clock.now = SIGNED_UP_AT + 2 * DAY
    wanted = await try_out(company, RULES["holds"], facts)
    found = await tell(company, code, facts, order)
    assert found["state"] == wanted.state == "qualified"
    assert found["rewards"] == {
        ("friend", "pending"): 500,
        ("part", "pending"): 500,
        ("share", "pending"): 617,
    }
