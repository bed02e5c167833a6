"""A programme with rewards, its use cases, and what its ledger must always say."""

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg

from service.domain.ledger import Transfer
from service.domain.programmes import DEFAULT_PROGRAMME
from service.domain.referral_codes import NewReferralCode
from service.domain.referrals import SYSTEM, ProgrammeReferral
from service.services import Services, open_services
from service.settings.settings import Settings
from service.use_cases.events import EventReport, Reported
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.ledger import Movement
from service.use_cases.participants import NewParticipant, ParticipantChange, ShownParticipant, Who
from service.use_cases.referrals import Verdict
from service.use_cases.sign_ups import SignUp
from tests.factories import MovableClock

CONNECTIONS = 24
EUR = {"unit": "EUR"}
FRIEND = {"name": "friend", "to": "referrer", "on": "qualified", "amount": 500, **EUR}
ON_PURCHASE = {"on": "purchase", "minimum": {"amount": 2000, "unit": "EUR"}}
_numbers = itertools.count(1)


def new_id(prefix: str) -> str:
    """Return an id that no other test uses."""
    return f"{prefix}-{next(_numbers)}"


class Shop:
    """A company in a programme, by the use cases that its calls lead to."""

    def __init__(
        self,
        services: Services,
        database: asyncpg.Connection,
        clock: MovableClock,
        programme: str = DEFAULT_PROGRAMME,
    ) -> None:
        self.services = services
        self.database = database
        self.clock = clock
        self.programme = programme

    def who(self, external_id: str) -> Who:
        return Who(external_id=external_id, programme=self.programme)

    async def use_rules(self, *rewards: dict[str, Any], **rules: Any) -> int:
        """Replace the rules; referrals qualify with a purchase of 20 euros. Return the version."""
        programmes = self.services.programmes
        version = (await programmes.find(self.programme)).programme.version
        document = {"qualify": ON_PURCHASE, "rewards": list(rewards), **rules}
        version, _ = await programmes.replace_rules(self.programme, version, document, SYSTEM)
        return version

    async def referrer(self, **signals: Any) -> ShownParticipant:
        """Make a participant with a code."""
        days = NewReferralCode(expires_at=self.clock().replace(year=2027))
        new = NewParticipant(who=self.who(new_id("referrer")), code=days, **signals)
        shown, _ = await self.services.participants.create(new, once())
        return shown

    async def sign_up(
        self, referrer: ShownParticipant, referee: str, **members: Any
    ) -> ProgrammeReferral:
        assert referrer.code is not None
        sign_up = SignUp(code=referrer.code.code, who=self.who(referee), **members)
        referral, _ = await self.services.sign_ups.report(sign_up, SYSTEM, once())
        return referral

    async def report(self, event_id: str, referee: str, **members: Any) -> Reported:
        """Report an event: a purchase of 49 euros, unless it is told otherwise."""
        what = {"type": "purchase", "amount": 4900, "unit": "EUR", **members}
        report = EventReport(
            external_id=event_id,
            who=self.who(referee),
            fingerprint=json.dumps(what, sort_keys=True, default=str).encode(),
            **what,
        )
        return await self.services.events.report(report, SYSTEM, once())

    async def refund(
        self, event_id: str, referee: str, of: str, amount: int | None = None
    ) -> Reported:
        unit = None if amount is None else "EUR"
        members = {"type": "refund", "amount": amount, "unit": unit, "refunds": of}
        return await self.report(event_id, referee, **members)

    async def buy(self, referrer: ShownParticipant) -> tuple[str, str, Reported]:
        """Have somebody new sign up and buy; return who it is, the purchase and what it did."""
        referee, order = new_id("referee"), new_id("order")
        await self.sign_up(referrer, referee)
        return referee, order, await self.report(order, referee)

    async def review(self, referral_id: UUID, decision: Any) -> None:
        verdict = Verdict(decision=decision, reason="because")
        await self.services.referrals.review(referral_id, verdict, SYSTEM)

    async def redeem(
        self, payout: str, participant: ShownParticipant, amount: int, unit: str = "EUR"
    ) -> tuple[Transfer, bool]:
        asked = self._movement(payout, participant, amount, unit)
        return await self.services.ledger.redeem(asked, SYSTEM, once())

    async def adjust(
        self, adjustment: str, participant: ShownParticipant, amount: int
    ) -> tuple[Transfer, bool]:
        asked = self._movement(adjustment, participant, amount, "EUR")
        return await self.services.ledger.adjust(asked, SYSTEM, once())

    def _movement(
        self, external_id: str, participant: ShownParticipant, amount: int, unit: str
    ) -> Movement:
        return Movement(
            external_id=external_id,
            who=Who(participant_id=participant.participant.participant_id),
            unit=unit,
            amount=amount,
            fingerprint=f"{amount} {unit}".encode(),
        )

    async def block(self, participant: ShownParticipant, blocked: bool) -> None:
        participant_id = participant.participant.participant_id
        await self.services.participants.change(participant_id, ParticipantChange(blocked=blocked))

    async def sweep(self) -> None:
        while await self.services.sweeps.release_due():
            pass

    async def balance(self, participant: ShownParticipant, unit: str = "EUR") -> tuple[int, ...]:
        """Return what is pending, available and redeemed."""
        row = await self.database.fetchrow(
            "SELECT pending, available, redeemed FROM balances"
            " WHERE participant_id = $1 AND unit = $2",
            participant.participant.participant_id,
            unit,
        )
        return (0, 0, 0) if row is None else tuple(row)

    async def live(self, rule: str) -> list[asyncpg.Record]:
        """Return the live rewards of a rule, the oldest first."""
        return await self.database.fetch(
            "SELECT * FROM rewards WHERE rule = $1 AND state <> 'reversed' ORDER BY reward_id", rule
        )


def once() -> AnswerOnce[Any]:
    return AnswerOnce(None, lambda _: None)  # type: ignore[arg-type,return-value]


@asynccontextmanager
async def open_shop(
    settings: Settings, database: asyncpg.Connection, clock: MovableClock | None = None
) -> AsyncIterator[Shop]:
    clock = clock or MovableClock()
    async with open_services(settings, clock, connections=CONNECTIONS) as services:
        yield Shop(services, database, clock)
