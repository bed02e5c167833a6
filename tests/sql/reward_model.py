"""What a programme ought to make of what is done in it: the model that the service is held to.

It knows rules as JSON, participants by the company's ids, and nothing of the service. Rewards and
counts are made anew from all that was ever done; kept is only what depends on the order of doing
it: a referral's place among its referrer's, what a cap has refused, and what is available already.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

Rule = dict[str, Any]
CLOCKS_DIFFER_BY = timedelta(minutes=5)
NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass
class Order:
    """What a participant did; until it is reported, `at` is NEVER: refunds may come first."""

    order_id: str
    type: str
    amount: int | None
    unit: str | None
    at: datetime = NEVER
    refunds: list[tuple[int | None, str | None]] = field(default_factory=list)

    @property
    def net(self) -> int | None:
        if self.amount is None:
            return None
        back = sum(amount or 0 for amount, unit in self.refunds if unit == self.unit)
        return 0 if self.is_refunded else max(0, self.amount - back)

    @property
    def is_refunded(self) -> bool:
        return (None, None) in self.refunds

    def reaches(self, minimum: dict[str, Any] | None, amount: int | None) -> bool:
        if minimum is None:
            return True
        return self.unit == minimum["unit"] and (amount or 0) >= int(minimum["amount"])

    @property
    def stands(self) -> bool:
        lessened = any(amount and unit == self.unit for amount, unit in self.refunds)
        return not self.is_refunded and not (lessened and self.net == 0)


@dataclass
class Given:
    """A live reward: what is left of it, and since when, or until when, it is there."""

    rule: Rule
    to: str
    left: int
    due: datetime
    available: bool = False


@dataclass
class Referral:
    """Somebody who signed up with another's code, under the rules of that time."""

    referee: str
    referrer: str
    version: int
    rules: dict[str, Any]
    at: datetime
    review: str = "none"
    state: str = "pending"
    nth: int | None = None
    given: dict[tuple[str, str], Given] = field(default_factory=dict)
    """By the rule's name, and the order that it is for."""
    refused: set[tuple[str, str]] = field(default_factory=set)

    @property
    def counts(self) -> bool:
        return self.state == "qualified"

    @property
    def told_state(self) -> str:
        """The state that is told: `rewarded` once anything but what signing up gives is paid."""
        paid = any(one.available for one in self.given.values() if one.rule["on"] != "signup")
        return "rewarded" if self.counts and paid else self.state

    @property
    def ends_at(self) -> datetime:
        days = self.rules["qualify"].get("within_days")
        return NEVER if days is None else self.at + timedelta(days=days)


class Model:
    def __init__(self) -> None:
        self.orders: dict[str, list[Order]] = {}
        self.referrals: dict[str, Referral] = {}
        self.milestones: dict[tuple[str, str, int], Given] = {}
        self.blocked: set[str] = set()
        self.paused = False
        self.adjusted: Counter[tuple[str, str]] = Counter()
        self.redeemed: Counter[tuple[str, str]] = Counter()

    def of(self, referrer: str) -> list[Referral]:
        return [one for one in self.referrals.values() if one.referrer == referrer]

    def standing(self, referrer: str) -> int:
        return sum(one.counts for one in self.of(referrer))

    def look_at(self, referral: Referral, now: datetime) -> None:
        """Have all that is known of a referral take effect."""
        counted, standing = referral.counts, self.standing(referral.referrer)
        cause, once = self._qualify(referral)
        if referral.review == "rejected":
            had = referral.state in {"qualified", "reversed"}
            referral.state = "reversed" if had else "rejected"
        elif once:
            referral.nth = referral.nth or standing + 1
            referral.state = "qualified" if cause or self._at_once(referral) else "reversed"
        else:
            late = referral.ends_at <= now and referral.review != "approved"
            referral.state = "rejected" if late else "pending"
        self._settle(referral, cause, now)
        if referral.counts and not counted:
            self._reach(referral, standing + 1, cause, now)
        elif counted and not referral.counts:
            for whose, name, n in list(self.milestones):
                if whose == referral.referrer and n >= standing:
                    del self.milestones[whose, name, n]

    def _at_once(self, referral: Referral) -> bool:
        return bool(referral.rules["qualify"]["on"] == "signup")

    def _orders(self, referral: Referral) -> list[Order]:
        """Return what was done since the sign-up, the earliest first."""
        since = referral.at - CLOCKS_DIFFER_BY
        told = [one for one in self.orders.get(referral.referee, ()) if since <= one.at < NEVER]
        return sorted(told, key=lambda one: one.at)

    def _qualify(self, referral: Referral) -> tuple[Order | None, bool]:
        """Return the order that qualifies, and whether one does, or did before its refunds."""
        qualify = referral.rules["qualify"]
        minimum = qualify.get("minimum")
        once = self._at_once(referral)
        for order in self._orders(referral):
            if order.type != qualify["on"] or order.at >= referral.ends_at:
                continue
            if order.reaches(minimum, order.amount):
                once = True
                if order.stands and order.reaches(minimum, order.net):
                    return order, True
        return None, once

    def _wanted(
        self, referral: Referral, cause: Order | None
    ) -> Iterator[tuple[tuple[str, str], Given]]:
        """Yield what the rules give the referral as it is, caps and milestones apart."""
        for rule in referral.rules["rewards"] if referral.review != "rejected" else []:
            sources: list[tuple[str, Order | None]] = []
            if rule["on"] == "signup":
                sources = [("", None)]
            elif rule["on"] == "qualified" and referral.counts:
                sources = [("", cause)]
            elif referral.counts:
                until = referral.at + timedelta(days=rule.get("within_days", 9999))
                orders = [
                    one
                    for one in self._orders(referral)
                    if one.type == rule["on"] and one.stands and one.at < until
                    if "basis_points" not in rule or one.unit == rule["unit"]
                ]
                sources = [(one.order_id, one) for one in orders[: rule.get("times")]]
            to = referral.referrer if rule["to"] == "referrer" else referral.referee
            for order_id, order in sources:
                worth = _worth(rule, referral.nth or 1, order)
                if worth:
                    due = _due(rule, order.at if order else referral.at)
                    yield (rule["name"], order_id), Given(rule, to, worth, due)

    def _settle(self, referral: Referral, cause: Order | None, now: datetime) -> None:
        wanted = dict(self._wanted(referral, cause))
        for key, given in list(referral.given.items()):
            want = wanted.get(key)
            # One that grows is given anew, and one that was released and is to be held for longer.
            longer = want and want.rule.get("hold_days") and want.due > max(given.due, now)
            if want is None or want.left > given.left or (given.available and longer):
                del referral.given[key]
            else:
                given.left, given.due = want.left, given.due if given.available else want.due
        for key, want in wanted.items():
            if key in referral.given or key in referral.refused:
                continue
            if not self._has_room(referral.referrer, want.rule):
                referral.refused.add(key)
                continue
            referral.given[key] = want
            want.available = self.is_free(want, referral) and want.due <= now

    def _reach(self, referral: Referral, n: int, cause: Order | None, now: datetime) -> None:
        for rule in referral.rules["rewards"]:
            here = n == rule.get("at") or ("every" in rule and n % rule["every"] == 0)
            if rule["on"] == "milestone" and here and self._has_room(referral.referrer, rule):
                due = _due(rule, cause.at if cause else referral.at)
                given = Given(rule, referral.referrer, rule["amount"], due)
                self.milestones[referral.referrer, rule["name"], n] = given
                given.available = self.is_free(given, None) and given.due <= now

    def rewards(self) -> Iterator[tuple[str, Referral | None, tuple[str, str | int], Given]]:
        """Yield the live ones: whose referral, and by which rule for what."""
        for referral in self.referrals.values():
            for key, given in referral.given.items():
                yield referral.referrer, referral, key, given
        for (referrer, name, n), given in self.milestones.items():
            yield referrer, None, (name, n), given

    def _has_room(self, referrer: str, rule: Rule) -> bool:
        alike = [
            (whose, given.rule)
            for whose, _, (name, _), given in self.rewards()
            if name == rule["name"]
        ]
        own = sum("max_per_referrer" in one and whose == referrer for whose, one in alike)
        total = sum("max_total" in one for _, one in alike)
        return bool(own < rule.get("max_per_referrer", 99) and total < rule.get("max_total", 99))

    def is_held(self, given: Given, referral: Referral | None) -> bool:
        doubtful = [referral] if referral else self.of(given.to)  # of a milestone any of them
        return given.to in self.blocked or any(one.review == "open" for one in doubtful)

    def is_free(self, given: Given, referral: Referral | None) -> bool:
        return not self.paused and not self.is_held(given, referral)

    def sweep(self, now: datetime) -> None:
        for referral in self.referrals.values():
            self.look_at(referral, now)
        for _, whose, _, given in self.rewards():
            given.available |= given.due <= now and self.is_free(given, whose)

    def balances(self) -> dict[tuple[str, str], tuple[int, int, int]]:
        """Return what is pending, available and redeemed, by participant and unit."""
        pending: Counter[tuple[str, str]] = Counter()
        available = Counter(self.adjusted)
        for _, _, _, given in self.rewards():
            account = available if given.available else pending
            account[given.to, given.rule["unit"]] += given.left
        available.subtract(self.redeemed)
        keys = {*pending, *available, *self.redeemed}
        of = {key: (pending[key], available[key], self.redeemed[key]) for key in keys}
        return {key: amounts for key, amounts in of.items() if any(amounts)}


def _worth(rule: Rule, nth: int, order: Order | None) -> int:
    terms = rule
    for tier in rule.get("tiers", ()):
        terms = tier if tier["from"] <= nth else terms
    if "amount" in terms:
        return int(terms["amount"])
    if order is None or order.unit != rule["unit"]:
        return 0
    part: int = (order.net or 0) * terms["basis_points"] // 10_000
    most: int = rule.get("max_amount", part)
    return min(part, most)


def _due(rule: Rule, at: datetime) -> datetime:
    return at + timedelta(days=rule.get("hold_days", 0))
