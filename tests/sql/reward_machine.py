"""A programme that a state machine acts on, and what is compared with the model of it."""

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

from hypothesis.stateful import RuleBasedStateMachine
from uuid6 import uuid7

from service.domain.events import Event
from service.domain.programmes import DEFAULT_PROGRAMME_ID, Supposed
from service.domain.rewards import Trial, has_cap
from service.use_cases.events import Reported
from service.use_cases.programmes import NewProgramme
from tests.conftest import empty
from tests.factories import WITHOUT_KEY, MovableClock
from tests.sql.reward_model import NEVER, Model, Referral
from tests.sql.rewarding import Shop, new_id

STATES: Final = """
    SELECT p.external_id, r.state, r.review, r.nth, r.sequence,
           (SELECT array_agg(d.sequence ORDER BY d.sequence)
              FROM decisions d WHERE d.referral_id = r.user_id) AS sequences,
           (SELECT d.state FROM decisions d
             WHERE d.referral_id = r.user_id ORDER BY d.sequence DESC LIMIT 1) AS decided
      FROM referrals r
      JOIN participants p ON p.participant_id = r.user_id
"""
REWARDS: Final = """
    SELECT COALESCE(f.external_id, o.external_id) AS whose, w.rule, e.external_id AS order_id,
           w.nth, o.external_id AS owner, w.unit, w.amount - w.reversed AS left_of_it, w.state,
           w.held
      FROM rewards w
      JOIN participants o ON o.participant_id = w.participant_id
      LEFT JOIN participants f ON f.participant_id = w.referral_id
      LEFT JOIN events e ON e.event_id = w.cause_id
     WHERE w.state <> 'reversed'
"""
BALANCES: Final = """
    SELECT p.external_id, b.unit, b.pending, b.available, b.redeemed
      FROM balances b
      JOIN participants p USING (participant_id)
     WHERE (b.pending, b.available, b.redeemed) <> (0, 0, 0)
"""


class StandingClock(MovableClock):
    """A moment that stays as it is until the test moves it."""

    def __init__(self) -> None:
        super().__init__()
        self._now = super().__call__()

    def __call__(self) -> datetime:
        return self._now + self.ahead


class ProgrammeUnderTest(RuleBasedStateMachine):
    """A new programme for each example, in a service that all examples share."""

    runner: ClassVar[asyncio.Runner]
    shop: ClassVar[Shop]
    tables: ClassVar[tuple[str, ...]]
    counted: ClassVar[Counter[str]] = Counter()
    model: Model

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    async def begin_with(self, document: dict[str, Any]) -> None:
        self.counted["examples"] += 1
        self.model = Model()
        shop = self.shop
        await shop.database.execute(empty(self.tables))
        shop.clock.ahead = timedelta()
        shop.programme = new_id("programme")
        new = NewProgramme(key=shop.programme, name="Shop", rules=document)
        await shop.services.programmes.create(new, "system", WITHOUT_KEY)
        made = [await shop.referrer(device_id=f"device-{number}") for number in range(2)]
        self.referrers = made
        self.ids = [str(one.participant.external_id) for one in made]

    def now(self) -> datetime:
        """Return the moment, which no other step has."""
        self.counted["steps"] += 1
        self.shop.clock.ahead += timedelta(seconds=1)
        return self.shop.clock()

    def report(self, who: str, now: datetime, known: bool, event_id: str, **members: Any) -> None:
        referral = self.model.referrals.get(who)
        trial = None if referral is None else self.do(self._try(referral))
        nth = None if referral is None else referral.nth
        reported = self.do(self.shop.report(event_id, who, **members))
        assert reported.is_new is not known
        assert (reported.referral is None) is (referral is None)
        if referral is not None and not known:
            self.model.look_at(referral, now)
        if referral is not None and trial is not None:
            self._compare_to_trial(referral, trial, reported)
            if referral.counts and nth is None:
                self._compare_milestones(referral, trial)

    async def _try(self, referral: Referral) -> Trial:
        """Ask what the rules would make of all that is known of a referral."""
        told: list[dict[str, Any]] = []
        for order in self.model.orders[referral.referee]:
            if order.at < NEVER:
                of = {"type": order.type, "amount": order.amount, "unit": order.unit}
                at = {"external_id": order.order_id, "occurred_at": order.at, "refunds": None}
                told.append(of | at)
            for place, (amount, unit) in enumerate(order.refunds):
                of = {"type": "refund", "amount": amount, "unit": unit}
                at = {"external_id": f"{order.order_id}-{place}", "occurred_at": referral.at}
                told.append(of | at | {"refunds": order.order_id})
        events = [
            Event(
                event_id=uuid7(),
                programme_id=DEFAULT_PROGRAMME_ID,
                participant_id=DEFAULT_PROGRAMME_ID,
                received_at=referral.at,
                **members,
            )
            for members in told
        ]
        supposed = Supposed(
            registered_at=referral.at,
            window_ends_at=None if referral.ends_at is NEVER else referral.ends_at,
            nth=referral.nth or self.model.standing(referral.referrer) + 1,
        )
        return await self.shop.services.programmes.try_rules(
            self.shop.programme, referral.rules, supposed, events
        )

    def _compare_to_trial(self, referral: Referral, trial: Trial, reported: Reported) -> None:
        """What was tried knows no review, no block and no cap."""
        assert reported.referral is not None
        if referral.review not in {"none", "open"}:
            return
        told = {"rewarded": "qualified"}
        state, found = trial.state.value, reported.referral.state.value
        assert told.get(state, state) == told.get(found, found)
        tried: Counter[str] = Counter()
        for want in trial.rewards:
            key = want.rule.name, want.cause.external_id if want.cause else ""
            if key not in referral.refused and want.rule.on != "milestone":
                tried[want.rule.name] += want.amount
        given: Counter[str] = Counter()
        for one in reported.rewards:
            given[one.rule] += one.left
        assert +given == tried

    def _compare_milestones(self, referral: Referral, trial: Trial) -> None:
        """Compare those that the referral, which has just qualified, makes its referrer reach."""
        milestones = [want for want in trial.rewards if want.rule.on == "milestone"]
        tried = {want.rule.name: want.amount for want in milestones if not has_cap(want.rule)}
        reached = {
            name: given.left
            for (whose, name, n), given in self.model.milestones.items()
            if whose == referral.referrer and n == referral.nth
        }
        capped = {want.rule.name for want in milestones if has_cap(want.rule)}
        assert {name: reached[name] for name in reached if name not in capped} == tried

    def check_invariants(self, *args: Any, **kwargs: Any) -> None:
        super().check_invariants(*args, **kwargs)
        if hasattr(self, "model"):
            self.do(self.compare())
            self.do(self.prove())

    async def prove(self) -> None:
        check = self.shop.services.ledger_check
        assert [difference async for difference in check.check_all()] == []

    async def compare(self) -> None:
        """Compare all that is stored with what the model says."""
        stored = {}
        for row in await self.shop.database.fetch(REWARDS):
            cause = row["nth"] or row["order_id"] or ""
            stored[row["whose"], row["rule"], cause] = tuple(row.values())[4:]
        expected = {}
        for referrer, referral, (name, cause), given in self.model.rewards():
            key = referral.referee if referral else referrer, name, cause
            is_free = self.model.is_free(given, referral)
            if is_free and given.due <= self.shop.clock() and key in stored:
                given.available |= stored[key][3] == "available"  # before the sweep comes by
            state = "available" if given.available else "pending"
            held = not given.available and self.model.is_held(given, referral)
            expected[key] = given.to, given.rule["unit"], given.left, state, held
        assert stored == expected
        states = {}
        for row in await self.shop.database.fetch(STATES):
            states[row["external_id"]] = row["state"], row["review"], row["nth"]
            assert row["sequences"] == list(range(1, row["sequence"] + 1))
            assert row["decided"] == row["state"]
        assert states == {
            one.referee: (one.told_state, one.review, one.nth)
            for one in self.model.referrals.values()
        }
        balances = await self.shop.database.fetch(BALANCES)
        found = {tuple(row.values())[:2]: tuple(row.values())[2:] for row in balances}
        assert found == self.model.balances()
