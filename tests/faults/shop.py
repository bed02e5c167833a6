"""The shop whose company reports to the service: its programme, its users, what they do.

Users come in generations, each with referrers of its own, so that caps and milestones are reached
again and again, however long a run is. Those of every third generation keep what they buy, unless
they regret it: those who hold a reward of which there are few give it back to others.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

PROGRAMME: Final = "shop"
UNIT: Final = "EUR"
POINTS: Final = "points"
MINIMUM: Final = 2000
WITHIN: Final = timedelta(days=30)
HOLD: Final = timedelta(days=1)
WELCOME: Final = 100
FRIEND: Final = 500
LATER_FRIEND: Final = 800
LATER: Final = 3
"""Which referral of a referrer is the first that LATER_FRIEND is given for."""
THANKS: Final = 300
BASIS_POINTS: Final = 1234
MOST_SHARED: Final = 500
TIMES: Final = 2
MILESTONE: Final = 1000
EVERY: Final = 5
CAPS: Final = {"friend": 5, "thanks": 4}
"""How many of each rule's rewards there may be: for each referrer, and in all."""
RULES: Final[dict[str, Any]] = {
    "qualify": {
        "on": "purchase",
        "minimum": {"amount": MINIMUM, "unit": UNIT},
        "within_days": WITHIN.days,
    },
    "rewards": [
        {"name": "welcome", "to": "referee", "on": "signup", "unit": POINTS, "amount": WELCOME},
        {
            "name": "friend",
            "to": "referrer",
            "on": "qualified",
            "unit": UNIT,
            "amount": FRIEND,
            "tiers": [{"from": LATER, "amount": LATER_FRIEND}],
            "hold_days": HOLD.days,
            "max_per_referrer": CAPS["friend"],
        },
        {
            "name": "thanks",
            "to": "referee",
            "on": "qualified",
            "unit": UNIT,
            "amount": THANKS,
            "max_total": CAPS["thanks"],
        },
        {
            "name": "share",
            "to": "referrer",
            "on": "purchase",
            "unit": UNIT,
            "basis_points": BASIS_POINTS,
            "max_amount": MOST_SHARED,
            "times": TIMES,
            "hold_days": HOLD.days,
        },
        {
            "name": "fives",
            "to": "referrer",
            "on": "milestone",
            "unit": UNIT,
            "amount": MILESTONE,
            "every": EVERY,
        },
    ],
}
ORDERS: Final = 6
"""How many things a buyer buys, each of which can be refunded twice."""
GENERATION: Final = 40
REFERRERS: Final = 3
"""How many referrers a generation has."""
_A_WHILE_AGO: Final = timedelta(hours=2)
"""Longer than clocks are off in any fault, so that no machine takes it for the future."""
_SOON: Final = 1.5
"""Seconds within which something ends that is to end while its buyer is being reported."""
_SHARE_OF_OTHERS: Final = 0.03
"""How often a known id is sent with other content."""

Body = dict[str, Any]


def generation_of(buyer: int) -> int:
    return buyer // GENERATION


def keeps(buyer: int) -> bool:
    """Whether the buyer takes nothing back at first: such referrals qualify one after another."""
    return generation_of(buyer) % 3 == 2


def referrer(generation: int, number: int) -> Body:
    """Return the body that makes a referrer, with a code."""
    name = f"referrer-{generation}-{number}"
    code = {"expires_in_days": 365}
    return {"external_id": name, "programme": PROGRAMME, "device_id": name, "code": code}


@dataclass
class Buyers:
    """Those whom several clients report at this time, and what they buy."""

    newest: int = GENERATION // 2
    bodies: dict[str, Body] = field(default_factory=dict)
    """The body of each event by its id: repetitions have the same."""

    def choose(self, rng: random.Random) -> int:
        """Return a buyer, mostly one of the newest."""
        if rng.random() < 0.12:
            self.newest += 1
        return max(0, self.newest - int(rng.expovariate(0.1)))

    def sign_up_of(self, buyer: int, code: str, device: str, rng: random.Random) -> Body:
        """Return the body of a sign-up; `device` is the referrer's."""
        body = {"code": code, "external_id": _name(buyer), "programme": PROGRAMME}
        if not keeps(buyer) and rng.random() < 0.08:
            body["device_id"] = device
        if rng.random() < 0.1:  # the window ends while the buyer is being reported
            body["signed_up_at"] = _text(_now() + _in_a_moment(rng) - WITHIN)
        elif _is_old(buyer):
            body["signed_up_at"] = _text(_now() - 2 * HOLD)
        return body

    def event_of(self, buyer: int, rng: random.Random) -> Body:
        """Return the body of an event, perhaps known; rarely another one under a known id."""
        number = rng.randint(1, ORDERS)
        if not keeps(buyer) and rng.random() < 0.35:
            part = {"amount": rng.choice([100, MINIMUM]), "unit": UNIT}
            body = self._refund(
                buyer, number, rng.randint(1, 2), part if rng.random() < 0.5 else {}
            )
        else:
            body = self._order(buyer, number, rng)
        return _perhaps_another(body, rng)

    def regrets_of(self, buyer: int, rng: random.Random) -> Sequence[Body]:
        """Return the bodies of two refunds of the whole of one order."""
        orders = [f"{_name(buyer)}/order-{number}" for number in range(1, ORDERS + 1)]
        number = 1 + rng.choice([at for at, order in enumerate(orders) if order in self.bodies])
        return [self._refund(buyer, number, which, {}) for which in (1, 2)]

    def _order(self, buyer: int, number: int, rng: random.Random) -> Body:
        return self._known(
            f"{_name(buyer)}/order-{number}",
            buyer,
            {
                "type": "visit" if rng.random() < 0.15 else "purchase",
                "amount": rng.choice([150, 500, MINIMUM, 4900]),
                "unit": UNIT,
                **_moment(buyer, rng),
            },
        )

    def _refund(self, buyer: int, number: int, which: int, part: Body) -> Body:
        order = f"{_name(buyer)}/order-{number}"
        body = {"type": "refund", "refunds": order, **part}
        return self._known(f"{_name(buyer)}/refund-{number}-{which}", buyer, body)

    def _known(self, name: str, buyer: int, body: Body) -> Body:
        """Return the body that was sent under this id first."""
        who = {"id": name, "external_id": _name(buyer), "programme": PROGRAMME}
        return self.bodies.setdefault(name, who | body)


@dataclass
class Movements:
    """What is paid out and adjusted, and to whom."""

    newest: int = 0
    bodies: dict[str, Body] = field(default_factory=dict)
    people: deque[str] = field(default_factory=lambda: deque(maxlen=60))
    """Known participants, the newest ones."""

    def payout(self, rng: random.Random) -> Body:
        """Return the body of a redemption, perhaps known; rarely another one under its id."""
        unit = rng.choice([UNIT, UNIT, UNIT, POINTS])
        return self._movement("payout", unit, rng.choice([40, 100, 300, 700]), rng)

    def adjustment(self, rng: random.Random) -> Body:
        """Return the body of an adjustment, like `payout`."""
        return self._movement("adjustment", UNIT, rng.choice([-400, -1, 250, 900]), rng)

    def _movement(self, what: str, unit: str, amount: int, rng: random.Random) -> Body:
        if rng.random() < 0.4:
            self.newest += 1
        name = f"{what}-{max(0, self.newest - int(rng.expovariate(0.7)))}"
        if name not in self.bodies:
            self.bodies[name] = {
                "id": name,
                "external_id": rng.choice(self.people),
                "programme": PROGRAMME,
                "unit": unit,
                "amount": amount,
                "note": "as agreed",
            }
        return _perhaps_another(self.bodies[name], rng)


def verdict(rng: random.Random) -> Body:
    """Return the body of a review."""
    return {"decision": rng.choice(["approve", "reject"]), "reason": "looked at"}


def newest_of(bodies: dict[str, Body], count: int) -> Sequence[Body]:
    return list(bodies.values())[-count:]


def _perhaps_another(known: Body, rng: random.Random) -> Body:
    other = rng.random() < _SHARE_OF_OTHERS
    return {**known, "amount": 1, "unit": UNIT} if other else known


def _is_old(buyer: int) -> bool:
    """Whether the buyer signed up so long ago that holds end while purchases are reported."""
    return buyer % 3 > 0


def _moment(buyer: int, rng: random.Random) -> Body:
    chance = rng.random()
    if _is_old(buyer) and chance < 0.7:
        return {"occurred_at": _text(_now() + _in_a_moment(rng) - HOLD)}
    return {"occurred_at": _text(_now() - _A_WHILE_AGO)} if chance > 0.8 else {}


def _name(buyer: int) -> str:
    return f"buyer-{buyer}"


def _now() -> datetime:
    return datetime.now(UTC)


def _in_a_moment(rng: random.Random) -> timedelta:
    return timedelta(seconds=rng.uniform(0, _SOON))


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
