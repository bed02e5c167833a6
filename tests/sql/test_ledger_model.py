"""Rewards and the ledger against a small model, whatever is done in whatever order.

Promises 13 and 15: after every step the ledger proves itself, each participant has exactly what the
model says, and nothing is available too early, or held or pending for no reason.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
from hypothesis import HealthCheck
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from service.domain.errors import BalanceTooLow
from service.domain.ledger import Transfer
from service.settings.settings import Settings
from service.use_cases.participants import ShownParticipant
from service.use_cases.programmes import ProgrammeChange
from tests.sql.rewarding import FRIEND, Shop, new_id, open_shop

DAY: Final = timedelta(days=1)
CAP: Final = 3
WINDOW: Final = 30 * DAY
REWARDS: Final[list[dict[str, Any]]] = [
    {**FRIEND, "hold_days": 2, "tiers": [{"from": 3, "amount": 800}], "max_per_referrer": CAP},
    {"name": "share", "to": "referrer", "on": "purchase", "unit": "EUR", "basis_points": 1234,
     "max_amount": 700, "times": 2, "within_days": 60, "hold_days": 1},
    {"name": "welcome", "to": "referee", "on": "signup", "unit": "points", "amount": 100},
    {"name": "pairs", "to": "referrer", "on": "milestone", "every": 2, "unit": "EUR",
     "amount": 1000},
]  # fmt: skip


@dataclass
class Purchase:
    amount: int
    at: datetime | None = None  # None: refunded before it was reported
    refunds: list[int | None] = field(default_factory=list)

    @property
    def net(self) -> int:
        if None in self.refunds:
            return 0
        return max(0, self.amount - sum(one or 0 for one in self.refunds))


@dataclass
class Sub:
    """A referral as the model has it."""

    registered_at: datetime
    referrer: int
    purchases: dict[str, Purchase] = field(default_factory=dict)
    rejected: bool = False
    is_open: bool = False
    nth: int = 0
    friend: bool = False
    refused: bool = False
    counted: bool = False

    def in_time(self) -> list[Purchase]:
        if self.rejected:
            return []
        ends_at = self.registered_at + WINDOW
        return [one for one in self.purchases.values() if one.at and one.at < ends_at]

    def qualifies(self) -> bool:
        return any(one.net >= 2000 for one in self.in_time())

    def has_qualified(self) -> bool:
        """Also if that was taken back before anybody heard of it: every order is told alike."""
        return any(one.amount >= 2000 for one in self.in_time())

    def share(self) -> int:
        if not self.counted:
            return 0
        left = [one for one in self.purchases.values() if one.at and one.net > 0]
        left = [one for one in left if one.at and one.at < self.registered_at + 60 * DAY]
        first = sorted(left, key=lambda one: one.at or self.registered_at)[:2]
        return sum(min(700, one.net * 1234 // 10_000) for one in first)


class Model:
    """What each referrer ought to have."""

    def __init__(self) -> None:
        self.subs: dict[str, Sub] = {}
        self.adjusted = [0, 0]

    def of(self, referrer: int) -> list[Sub]:
        return [sub for sub in self.subs.values() if sub.referrer == referrer]

    def look_at(self, sub: Sub) -> None:
        """Have what is known of a referral take effect."""
        qualifies = sub.qualifies()
        others = [one for one in self.of(sub.referrer) if one is not sub]
        if sub.has_qualified():
            sub.nth = sub.nth or 1 + sum(one.counted for one in others)
        if qualifies and not sub.counted:
            room = sum(one.friend for one in others) < CAP
            sub.friend = room and not sub.refused
            sub.refused = sub.refused or not room
        sub.counted = qualifies
        sub.friend = sub.friend and qualifies

    def expected(self, referrer: int) -> int:
        subs = self.of(referrer)
        friends = sum(800 if sub.nth >= 3 else 500 for sub in subs if sub.friend)
        pairs = sum(sub.counted for sub in subs) // 2 * 1000
        return friends + pairs + sum(sub.share() for sub in subs) + self.adjusted[referrer]


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = Model()
        self.referrers: list[ShownParticipant] = []
        self.referral_ids: dict[str, Any] = {}
        self.blocked = [False, False]
        self.paused = False
        self.payouts: list[tuple[int, Transfer]] = []
        self.do(self._open(settings))

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    async def _open(self, settings: Settings) -> None:
        self.database = await asyncpg.connect(settings.database_url)
        self.opened = open_shop(settings, self.database)
        self.shop: Shop = await self.opened.__aenter__()
        await self._pause(False)
        await self.shop.use_rules(
            *REWARDS,
            qualify={
                "on": "purchase",
                "minimum": {"amount": 2000, "unit": "EUR"},
                "within_days": WINDOW.days,
            },
        )
        self.referrers = [
            await self.shop.referrer(device_id=f"device-{number}") for number in range(2)
        ]

    async def _pause(self, paused: bool) -> None:
        self.paused = paused
        await self.shop.services.programmes.change("default", ProgrammeChange(paused=paused))

    def teardown(self) -> None:
        self.do(self.opened.__aexit__(None, None, None))
        self.do(self.database.close())
        self.runner.close()

    @rule(referrer=st.integers(0, 1), buys=st.booleans(), suspicious=st.booleans())
    def sign_up(self, referrer: int, buys: bool, suspicious: bool) -> None:
        if len(self.model.subs) >= 8 or self.blocked[referrer]:  # whose code is not live
            return
        referee = new_id("referee")
        signals = {"device_id": f"device-{referrer}"} if suspicious else {}
        made = self.do(self.shop.sign_up(self.referrers[referrer], referee, **signals))
        self.referral_ids[referee] = made.referral_id
        self.model.subs[referee] = Sub(made.registered_at, referrer, is_open=suspicious)
        if buys:
            self._buy(referee, 3000, new_id("order"))

    @precondition(lambda self: self.model.subs)
    @rule(which=st.integers(0, 7), amount=st.sampled_from([1, 1999, 2000, 2500, 9999]))
    def buy(self, which: int, amount: int) -> None:
        self._buy(self._referee(which), amount, new_id("order"))

    def _buy(self, referee: str, amount: int, order: str) -> None:
        self.do(self.shop.report(order, referee, amount=amount))
        sub = self.model.subs[referee]
        purchase = sub.purchases.setdefault(order, Purchase(amount))
        purchase.amount, purchase.at = amount, self.shop.clock()
        self.model.look_at(sub)

    @precondition(lambda self: self.model.subs)
    @rule(which=st.integers(0, 7), amount=st.none() | st.sampled_from([1, 500, 1000, 10_000]))
    def refund(self, which: int, amount: int | None) -> None:
        referee = self._referee(which)
        sub = self.model.subs[referee]
        bought = [order for order, one in sub.purchases.items() if one.at]
        if bought:
            order = bought[which % len(bought)]
            self.do(self.shop.refund(new_id("refund"), referee, order, amount))
            sub.purchases[order].refunds.append(amount)
            self.model.look_at(sub)

    @precondition(lambda self: self.model.subs)
    @rule(which=st.integers(0, 7), amount=st.none() | st.sampled_from([1, 501, 10_000]))
    def refund_before_it_is_bought(self, which: int, amount: int | None) -> None:
        referee, order = self._referee(which), new_id("order")
        self.do(self.shop.refund(new_id("refund"), referee, order, amount))
        self.model.subs[referee].purchases[order] = Purchase(2500, refunds=[amount])
        self._buy(referee, 2500, order)

    @rule(days=st.sampled_from([0.4, 1, 2, 10, 31]))
    def wait(self, days: float) -> None:
        self.shop.clock.ahead += days * DAY

    @precondition(lambda self: self.model.subs)
    @rule(which=st.integers(0, 7), decision=st.sampled_from(["approve", "reject"]))
    def review(self, which: int, decision: str) -> None:
        referee = self._referee(which)
        self.do(self.shop.review(self.referral_ids[referee], decision))
        sub = self.model.subs[referee]
        sub.rejected, sub.is_open = decision == "reject", False
        self.model.look_at(sub)

    @rule(referrer=st.integers(0, 1))
    def block_or_free(self, referrer: int) -> None:
        self.blocked[referrer] = not self.blocked[referrer]
        self.do(self.shop.block(self.referrers[referrer], self.blocked[referrer]))

    @rule()
    def pause_or_go_on(self) -> None:
        self.do(self._pause(not self.paused))

    @rule()
    def sweep(self) -> None:
        self.do(self.shop.services.sweeps.release_due())
        left = self.do(
            self.database.fetchval(
                "SELECT count(*) FROM rewards"
                " WHERE state = 'pending' AND NOT held AND available_at <= $1",
                self.shop.clock(),
            )
        )
        assert self.paused or left == 0

    @rule(referrer=st.integers(0, 1), amount=st.sampled_from([-700, 1, 400]))
    def adjust(self, referrer: int, amount: int) -> None:
        self.do(self.shop.adjust(new_id("adjustment"), self.referrers[referrer], amount))
        self.model.adjusted[referrer] += amount

    @rule(referrer=st.integers(0, 1), amount=st.sampled_from([1, 300, 900]))
    def redeem(self, referrer: int, amount: int) -> None:
        _, available, _ = self.do(self.shop.balance(self.referrers[referrer]))
        try:
            paid, _ = self.do(self.shop.redeem(new_id("payout"), self.referrers[referrer], amount))
        except BalanceTooLow:
            assert available < amount
        else:
            assert available >= amount
            self.payouts.append((referrer, paid))

    @precondition(lambda self: self.payouts)
    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        _, paid = self.payouts[which % len(self.payouts)]
        self.do(self.shop.services.ledger.cancel(paid.transfer_id, "system"))

    def _referee(self, which: int) -> str:
        return list(self.model.subs)[which % len(self.model.subs)]

    def check_invariants(self, *args: Any, **kwargs: Any) -> None:
        super().check_invariants(*args, **kwargs)
        self.do(self._check())

    async def _check(self) -> None:
        check = self.shop.services.ledger_check
        assert [difference async for difference in check.check_all()] == []
        for number, referrer in enumerate(self.referrers):
            assert sum(await self.shop.balance(referrer)) == self.model.expected(number)
            pending = await self.database.fetch(
                "SELECT referral_id, held FROM rewards"
                " WHERE participant_id = $1 AND state = 'pending' AND referral_id IS NOT NULL",
                referrer.participant.participant_id,
            )
            under_review = {
                self.referral_ids[referee]
                for referee, sub in self.model.subs.items()
                if sub.is_open
            }
            for row in pending:
                is_held = self.blocked[number] or row["referral_id"] in under_review
                assert row["held"] is is_held
            released = await self.database.fetchval(
                "SELECT count(*) FROM rewards WHERE referral_id = ANY ($1) AND state = 'available'",
                list(under_review),
            )
            assert released == 0
        for referee, sub in self.model.subs.items():
            points = await self.database.fetchval(
                "SELECT pending + available FROM balances"
                " WHERE participant_id = $1 AND unit = 'points'",
                self.referral_ids[referee],
            )
            assert points == (0 if sub.rejected else 100)
        early = await self.database.fetchval(
            "SELECT count(*) FROM rewards"
            " WHERE state = 'available' AND available_at > $1 AND participant_id = ANY ($2)",
            self.shop.clock(),
            [one.participant.participant_id for one in self.referrers],
        )
        assert early == 0


def test_the_ledger_is_what_the_model_says(
    settings: Settings, database: asyncpg.Connection
) -> None:
    run_state_machine_as_test(
        lambda: LedgerMachine(settings),  # type: ignore[arg-type]  # it calls what it gets
        settings=profile(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
