"""A company with accounts of its own, which reports what its users do: what programmes are raced
with. Everything goes through the use cases, as the API calls them."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

import asyncpg

from service.domain.errors import Conflict, InvalidInput
from service.domain.programmes import DEFAULT_PROGRAMME
from service.domain.referral_codes import NewReferralCode
from service.domain.referrals import ProgrammeReferral
from service.postgresql.database import Repositories
from service.services import Services, open_services
from service.settings.settings import Settings
from service.use_cases.events import EventReport, Reported
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.participants import NewParticipant, Who
from service.use_cases.referrals import Verdict
from service.use_cases.sign_ups import SignUp
from tests.factories import WITHOUT_KEY, render_nothing
from tests.sql.racing import NOW

T = TypeVar("T")
CONNECTIONS: Final = 24
DAY: Final = timedelta(days=1)
ON_PURCHASE: Final[dict[str, Any]] = {
    "qualify": {"on": "purchase", "minimum": {"amount": 2000, "unit": "EUR"}, "within_days": 30},
    "rewards": [],
}
BY: Final = "client:shop"
SUMMARY = """
    SELECT r.state, r.reason, r.review, r.sequence, r.nth,
           (SELECT array_agg(d.sequence ORDER BY d.sequence)
              FROM decisions d WHERE d.referral_id = r.user_id) AS sequences,
           (SELECT array_agg(d.state ORDER BY d.sequence)
              FROM decisions d WHERE d.referral_id = r.user_id) AS states
      FROM referrals r
     WHERE r.user_id = $1
"""


def _who(who: str | UUID) -> Who:
    return Who(participant_id=who) if isinstance(who, UUID) else Who(external_id=who)


class Pause(AnswerOnce[Any]):
    """What a request does last, before its commit: it waits until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__(None, render_nothing)
        self._reached = asyncio.Event()
        self.over = asyncio.Event()

    async def keep(
        self,
        repositories: Repositories,
        result: Any,
        user_id: UUID | None,
        participant_id: UUID | None = None,
    ) -> None:
        self._reached.set()
        await self.over.wait()

    async def begins_in(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start the work and return when it is about to commit."""
        task = asyncio.create_task(work)
        reached = asyncio.create_task(self._reached.wait())
        await asyncio.wait({task, reached}, return_when=asyncio.FIRST_COMPLETED, timeout=2)
        if not reached.done():
            reached.cancel()
            raise AssertionError(f"it does not come that far: {task}")
        return task


class FixedClock:
    """The moment that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass(frozen=True)
class Company:
    """What the company's backend calls, and a connection to look with."""

    services: Services
    clock: FixedClock
    database: asyncpg.Connection

    async def set_rules(self, rules: dict[str, Any], replaced: int = 1) -> int:
        version, _ = await self.services.programmes.replace_rules(
            DEFAULT_PROGRAMME, replaced, rules, BY
        )
        return version

    async def share(self, external_id: str, **wish: Any) -> str:
        """Make a participant with a code, and return the code."""
        wanted = NewReferralCode(**{"expires_in_days": 30, **wish})
        new = NewParticipant(who=Who(external_id=external_id), code=wanted)
        shown, _ = await self.services.participants.create(new, WITHOUT_KEY)
        assert shown.code is not None
        return shown.code.code

    async def id_of(self, external_id: str) -> UUID:
        [shown] = await self.services.participants.find_external(Who(external_id=external_id))
        return shown.participant.participant_id

    async def sign_up(
        self, code: str, who: str | UUID, once: AnswerOnce[Any] = WITHOUT_KEY, **members: Any
    ) -> tuple[ProgrammeReferral, bool]:
        """Return the referral, and whether it is new."""
        sign_up = SignUp(code=code, who=_who(who), **members)
        return await self.services.sign_ups.report(sign_up, BY, once)

    async def refer(self, code: str, who: str | UUID, **members: Any) -> UUID:
        """Sign up; return the referral's id."""
        referral, is_new = await self.sign_up(code, who, **members)
        assert is_new
        return referral.referral_id

    async def report(
        self, event_id: str, who: str | UUID, once: AnswerOnce[Any] = WITHOUT_KEY, **members: Any
    ) -> Reported:
        """Report a purchase of 49 EUR, or what else `members` say."""
        of = {"type": "purchase", "amount": 4900, "unit": "EUR", **members}
        report = EventReport(
            external_id=event_id,
            who=_who(who),
            fingerprint=sha256(repr((who, sorted(of.items()))).encode()).digest(),
            **of,
        )
        return await self.services.events.report(report, BY, once)

    async def refund(
        self, event_id: str, who: str | UUID, refunds: str, amount: int | None = None
    ) -> Reported:
        """Report a refund, of all if there is no amount."""
        members: dict[str, Any] = {"amount": amount, "unit": None if amount is None else "EUR"}
        return await self.report(event_id, who, type="refund", refunds=refunds, **members)

    async def review(self, referral_id: UUID, decision: Literal["approve", "reject"]) -> bool:
        """Return whether the decision was news."""
        verdict = Verdict(decision=decision, reason="seen")
        _, is_new = await self.services.referrals.review(referral_id, verdict, BY)
        return is_new

    async def look(self, referral_id: UUID) -> dict[str, Any]:
        """Return what is stored about a referral; its decisions have to be without a gap."""
        row = await self.database.fetchrow(SUMMARY, referral_id)
        assert row is not None
        found = dict(row)
        assert found.pop("sequences") == list(range(1, found["sequence"] + 1))
        assert found["states"][-1] == found["state"]
        return found

    async def standing(self, external_id: str) -> int:
        """Return how many of a referrer's referrals count, which the table has to know, too."""
        referrer_id = await self.id_of(external_id)
        row = await self.database.fetchrow(
            """
            SELECT (SELECT count(*) FROM referrals
                     WHERE referrer_id = $1 AND state IN ('qualified', 'rewarded')),
                   COALESCE((SELECT qualified FROM standings WHERE participant_id = $1), 0)
            """,
            referrer_id,
        )
        assert row is not None
        counted, told = row
        assert counted == told
        return int(told)


@asynccontextmanager
async def open_company(settings: Settings, database: asyncpg.Connection) -> AsyncIterator[Company]:
    """Yield a company, with connections enough for a race."""
    clock = FixedClock()
    async with open_services(settings, clock, connections=CONNECTIONS) as services:
        await asyncio.gather(*(services.database.check_schema() for _ in range(CONNECTIONS)))
        yield Company(services, clock, database)


async def outcomes(*work: Any) -> tuple[list[Any], list[Exception]]:
    """Do all at once; return the results, and the refusals."""
    done: Sequence[Any] = await asyncio.gather(*work, return_exceptions=True)
    refused: list[Exception] = [one for one in done if isinstance(one, Conflict | InvalidInput)]
    results = [one for one in done if not isinstance(one, BaseException)]
    for one in done:
        if isinstance(one, BaseException) and one not in refused:
            raise one
    return results, refused
