"""Rules as Hypothesis draws them: always the same names, so that versions differ in their terms."""

from typing import Any

from hypothesis import strategies as st

TO_REFERRER = {"to": "referrer", "unit": "EUR"}
TO_REFEREE = {"to": "referee", "unit": "points"}
MINIMUM = {"amount": 2000, "unit": "EUR"}
QUALIFY: list[dict[str, Any]] = [
    {"on": "purchase", "minimum": MINIMUM, "within_days": 30},
    {"on": "purchase", "minimum": MINIMUM},
    {"on": "purchase"},
    {"on": "signup"},
]
TERMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "welcome": (
        {**TO_REFEREE, "on": "signup", "amount": 100},
        {"hold_days": 2, "max_per_referrer": 2, "max_total": 3},
    ),
    "friend": (
        {**TO_REFERRER, "on": "qualified", "amount": 500},
        {"tiers": [{"from": 2, "amount": 700}, {"from": 3, "amount": 900}], "hold_days": 2}
        | {"max_per_referrer": 2, "max_total": 3},
    ),
    "part": (
        {**TO_REFEREE, "unit": "EUR", "on": "qualified", "basis_points": 500},
        {"max_amount": 120, "hold_days": 1, "max_per_referrer": 2},
    ),
    "share": (
        {**TO_REFERRER, "on": "purchase", "basis_points": 1234, "times": 2},
        {"tiers": [{"from": 2, "basis_points": 2001}], "max_amount": 400}
        | {"within_days": 10, "hold_days": 3, "max_per_referrer": 3},
    ),
    "each": (
        {**TO_REFEREE, "unit": "EUR", "on": "purchase", "basis_points": 300},
        {"hold_days": 1},
    ),
    "early": (
        {**TO_REFERRER, "on": "purchase", "amount": 50, "times": 3},
        {"within_days": 5, "hold_days": 1, "max_total": 4},
    ),
    "visit": (
        {**TO_REFEREE, "on": "visit", "amount": 7},
        {"tiers": [{"from": 2, "amount": 9}], "times": 1, "within_days": 10, "max_total": 2},
    ),
    "pairs": (
        {**TO_REFERRER, "on": "milestone", "every": 2, "amount": 1000},
        {"hold_days": 4, "max_per_referrer": 1},
    ),
    "three": (
        {**TO_REFERRER, "on": "milestone", "at": 3, "unit": "points", "amount": 50},
        {"max_total": 1},
    ),
}
"""What each rule says, and what it says in some versions."""


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Draw what qualifies, three rules or more, and what follows from a shared device."""
    qualify = draw(st.sampled_from(QUALIFY))
    names = [name for name in TERMS if name != "part" or qualify["on"] == "purchase"]
    rewards = []
    for name in draw(st.lists(st.sampled_from(names), min_size=3, unique=True)):
        always, sometimes = TERMS[name]
        terms = {term: value for term, value in sometimes.items() if draw(st.booleans())}
        rewards.append({"name": name, **always, **terms})
    action = draw(st.sampled_from(["hold", "hold", "flag", "reject"]))
    return {"qualify": qualify, "rewards": rewards, "fraud": {"same_device": action}}
