"""A programme with rewards against a model, whatever is done in whatever order.

Promises 13 to 16: after every step the ledger proves itself, and states, rewards and balances are
what the model says; what an event then does is what trying the rules has said before.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Final

import asyncpg
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from service.domain.errors import BalanceTooLow, ReferralCodeUnusable
from service.domain.ledger import Transfer
from service.settings.settings import Settings
from service.use_cases.programmes import ProgrammeChange
from tests.conftest import Servers
from tests.sql.reward_machine import ProgrammeUnderTest, StandingClock
from tests.sql.reward_model import NEVER, Order, Referral
from tests.sql.reward_rules import documents
from tests.sql.rewarding import Shop, new_id, open_shop

DAY: Final = timedelta(days=1)
REFEREES: Final = 4
ORDERS: Final = 6
WHO: Final = st.sampled_from([0, 0, 0, 1, 1, 2, 3])
TOLD_BACK: Final = st.sampled_from([0, 0.1, 1, 2, 5])
"""How many days ago it was."""
Purchase = tuple[int, int, str, float]
BOUGHT: Final[st.SearchStrategy[list[Purchase]]] = st.lists(
    st.tuples(
        st.integers(0, ORDERS - 1),
        st.sampled_from([2500, 2500, 5000, 9999, 2000, 1999, 0]),
        st.sampled_from(["EUR", "EUR", "EUR", "EUR", "USD"]),
        TOLD_BACK,
    ),
    max_size=4,
)
LONGEST: Final = 300 * DAY
"""Codes live longer."""
SECONDS: Final = float(os.environ.get("MODEL_SECONDS", "0"))
"""How long to go on with new examples."""


class Programme(ProgrammeUnderTest):
    """Two referrers, and four referees with six orders each: so few that much happens to one."""

    @initialize(
        document=documents(),
        bought=st.lists(BOUGHT, min_size=1, max_size=REFEREES),
        suspicious=st.booleans(),
    )
    def begin(
        self, document: dict[str, Any], bought: list[list[Purchase]], suspicious: bool
    ) -> None:
        """Begin with some who have signed up, the first perhaps suspiciously, and have bought."""
        self.version, self.document = 1, document
        self.orders: dict[tuple[str, int], Order] = {}
        self.payouts: list[tuple[str, Transfer]] = []
        self.ended = False
        self.do(self.begin_with(document))
        self.referees = [new_id("referee") for _ in range(REFEREES)]
        for referee, purchases in enumerate(bought):
            self.sign_up(0, referee, 6, suspicious=suspicious and referee == 0)
            self.buy(referee, purchases)

    @rule(
        referrer=st.sampled_from([0, 0, 0, 1]),
        referee=st.integers(0, REFEREES - 1),
        days_ago=st.sampled_from([0, 2, 6, 6]),
        suspicious=st.sampled_from([False, False, True]),
    )
    def sign_up(self, referrer: int, referee: int, days_ago: float, suspicious: bool) -> None:
        who, whose = self.referees[referee], self.ids[referrer]
        if who in self.model.referrals:
            return
        now = self.now()
        at = now - days_ago * DAY
        members = {"device_id": f"device-{referrer}"} if suspicious else {}
        signing_up = self.shop.sign_up(self.referrers[referrer], who, signed_up_at=at, **members)
        if self.ended or whose in self.model.blocked:
            with pytest.raises(ReferralCodeUnusable):
                self.do(signing_up)
            return
        made = self.do(signing_up)
        action = self.document["fraud"]["same_device"] if suspicious else "off"
        assert list(made.flags) == (["same-device"] if suspicious else [])
        review = {"hold": "open", "reject": "rejected"}.get(action, "none")
        referral = Referral(who, whose, self.version, self.document, at, review)
        self.model.referrals[who] = referral
        self.model.look_at(referral, now)

    def _order(
        self, referee: int, number: int, kind: str, amount: int | None, unit: str | None
    ) -> Order:
        """Return an order by its place; the first time it is named decides what it is."""
        who = self.referees[referee]
        new = Order(f"{who}-{number}", kind, amount, unit)
        order = self.orders.setdefault((who, number), new)
        if order is new:
            self.model.orders.setdefault(who, []).append(order)
        return order

    @rule(referee=WHO, purchases=BOUGHT)
    def buy(self, referee: int, purchases: list[Purchase]) -> None:
        for number, amount, unit, days_ago in purchases:
            order = self._order(referee, number, "purchase", amount, unit)
            self._do(referee, order, days_ago)
            self.do(self.compare())

    @rule(referee=WHO, number=st.integers(0, ORDERS - 1), days_ago=TOLD_BACK)
    def visit(self, referee: int, number: int, days_ago: float) -> None:
        self._do(referee, self._order(referee, number, "visit", None, None), days_ago)

    def _do(self, referee: int, order: Order, days_ago: float) -> None:
        now, known = self.now(), order.at < NEVER
        if not known:
            order.at = now - days_ago * DAY
        of = {"type": order.type, "amount": order.amount, "unit": order.unit}
        who = self.referees[referee]
        self.report(who, now, known, order.order_id, occurred_at=order.at, **of)

    @rule(
        referee=WHO,
        number=st.integers(0, ORDERS - 1),
        part=st.sampled_from([None, 1, 500, 501, 2500]),
        twice=st.booleans(),
    )
    def give_back(self, referee: int, number: int, part: int | None, twice: bool) -> None:
        """Refund an order, of which nothing may be known yet, in part or whole."""
        order = self._order(referee, number, "purchase", 3000, "EUR")
        part = None if order.amount is None else part
        unit = None if part is None else order.unit
        order.refunds.append((part, unit))
        refund, who = new_id("refund"), self.referees[referee]
        members = {"type": "refund", "amount": part, "unit": unit, "refunds": order.order_id}
        for known in [False, True] if twice else [False]:
            self.report(who, self.now(), known, refund, **members)

    @rule(days=st.sampled_from([0, 0.4, 1, 2, 10, 31]), sweeps=st.booleans())
    def wait(self, days: float, sweeps: bool) -> None:
        if self.shop.clock.ahead < LONGEST:
            self.shop.clock.ahead += days * DAY
        now = self.now()
        if sweeps:
            self.do(self._sweep())
            self.model.sweep(now)

    async def _sweep(self) -> None:
        await self.shop.sweep()
        while await self.shop.services.referrals.reject_overdue():
            pass

    @precondition(lambda self: self.model.referrals)
    @rule(which=st.integers(0, 7), decision=st.sampled_from(["approve", "reject"]))
    def review(self, which: int, decision: str) -> None:
        now, referral = self.now(), self._one_of(which)
        self.do(self._review(referral, decision))
        referral.review = {"approve": "approved", "reject": "rejected"}[decision]
        self.model.look_at(referral, now)

    async def _review(self, referral: Referral, decision: str) -> None:
        [shown] = await self.shop.services.participants.find_external(
            self.shop.who(referral.referee)
        )
        await self.shop.review(shown.participant.participant_id, decision)

    @precondition(lambda self: self.model.referrals)
    @rule(which=st.integers(0, 7), referrer=st.booleans(), blocked=st.booleans())
    def block_or_free(self, which: int, referrer: bool, blocked: bool) -> None:
        self.now()
        referral = self._one_of(which)
        who = referral.referrer if referrer else referral.referee
        self.model.blocked = self.model.blocked - {who} | ({who} if blocked else set())
        self.do(self._block(who, blocked))

    async def _block(self, who: str, blocked: bool) -> None:
        [shown] = await self.shop.services.participants.find_external(self.shop.who(who))
        await self.shop.block(shown, blocked)

    @rule(what=st.sampled_from(["paused", "ended"]), yes=st.sampled_from([True, False, False]))
    def pause_or_end(self, what: str, yes: bool) -> None:
        if what == "paused":
            self.model.paused = yes
        else:
            self.ended = yes
        self._change(**{what: yes})

    def _change(self, **members: bool) -> None:
        self.now()
        change = ProgrammeChange(**members)  # type: ignore[arg-type]  # of these names
        self.do(self.shop.services.programmes.change(self.shop.programme, change))

    @rule(document=documents())
    def replace_rules(self, document: dict[str, Any]) -> None:
        self.now()
        self.document = document
        self.version = self.do(self.shop.use_rules(**{"rewards": [], **document}))

    @rule(referrer=st.integers(0, 1), amount=st.sampled_from([-700, 1, 400]))
    def adjust(self, referrer: int, amount: int) -> None:
        self.now()
        adjustment = new_id("adjustment")
        for is_new in (True, False):
            adjusting = self.shop.adjust(adjustment, self.referrers[referrer], amount)
            assert self.do(adjusting)[1] is is_new
        self.model.adjusted[self.ids[referrer], "EUR"] += amount

    @rule(referrer=st.integers(0, 1), amount=st.sampled_from([1, 300, 900]), fails=st.booleans())
    def pay_out(self, referrer: int, amount: int, fails: bool) -> None:
        """Pay, or take a payment back that has failed."""
        self.now()
        if fails and self.payouts:
            self._cancel(*self.payouts.pop())
            return
        account = self.ids[referrer], "EUR"
        _, available, _ = self.model.balances().get(account, (0, 0, 0))
        payout = new_id("payout")
        for is_new in (True, False):
            redeeming = self.shop.redeem(payout, self.referrers[referrer], amount)
            if available < amount:
                with pytest.raises(BalanceTooLow):
                    self.do(redeeming)
                return
            paid, made = self.do(redeeming)
            assert made is is_new
        self.model.redeemed[account] += amount
        self.payouts.append((self.ids[referrer], paid))

    def _cancel(self, whose: str, paid: Transfer) -> None:
        for is_new in (True, False):
            cancelling = self.shop.services.ledger.cancel(paid.transfer_id, "system")
            assert self.do(cancelling)[1] is is_new
        self.model.redeemed[whose, "EUR"] -= paid.amount

    def _one_of(self, which: int) -> Referral:
        referrals = list(self.model.referrals.values())
        return referrals[which % len(referrals)]


@pytest.fixture
def machine(
    settings: Settings, database: asyncpg.Connection, servers: Servers
) -> Iterator[type[Programme]]:
    """The machine with a service, which all examples share."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def opened() -> Shop:
            connection = await asyncpg.connect(settings.database_url)
            stack.push_async_callback(connection.close)
            return await stack.enter_async_context(open_shop(settings, connection, StandingClock()))

        class Opened(Programme):
            shop = runner.run(opened())
            tables = servers.tables

        Opened.runner = runner
        yield Opened
        runner.run(stack.aclose())


def test_a_programme_does_what_the_model_says(machine: type[Programme]) -> None:
    """Again and again for MODEL_SECONDS, or just once."""
    until = time.monotonic() + SECONDS
    while True:
        run_state_machine_as_test(
            machine,
            settings=profile(
                max_examples=100 if SECONDS else 30,
                stateful_step_count=40,
                deadline=None,
                derandomize=False,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
        if time.monotonic() >= until:
            break
    print(f"{machine.counted['examples']} examples, {machine.counted['steps']} steps")
