"""A company that reports what its users do, in any order, from many clients at once.

Participants share codes; several clients report one sign-up with different codes, purchases,
refunds before and after what they refund, and all of it again.
"""

import asyncio
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import aiohttp

from tests.company import basic
from tests.faults.history import Call, Kind
from tests.faults.load import LONGEST_PAUSE, TRIES, Unanswered, Wire, new_session

PROGRAMME: Final = "shop"
MINIMUM: Final = 2000
UNIT: Final = "EUR"
WITHIN: Final = timedelta(days=30)
SCOPES: Final = "events:write programme:read programme:manage"
REFERRERS: Final = 6
_RULES: Final = {
    "qualify": {
        "on": "purchase",
        "minimum": {"amount": MINIMUM, "unit": UNIT},
        "within_days": WITHIN.days,
    }
}
_PATHS: Final[dict[Kind, str]] = {
    "take_part": "/participants",
    "sign_up": "/referrals",
    "report": "/events",
}
_MIX: Final[dict[Kind, int]] = {"take_part": 1, "sign_up": 4, "report": 12}
_ALLOWED: Final[dict[Kind, set[int]]] = {
    "take_part": {200, 201},
    "sign_up": {200, 201, 409},
    "report": {200, 201, 409},
}
_REFUSALS: Final = {"already-referred", "id-reused"}
_A_WHILE_AGO: Final = timedelta(hours=2)
"""Longer than clocks are off in any fault, so that no machine takes it for the future."""


@dataclass
class Buyers:
    """Those whom several clients report at this time, and what they buy."""

    newest: int = 0
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The body of each event by its id: repetitions have the same."""

    def choose(self, rng: random.Random) -> str:
        """Return a buyer's id, mostly one of the newest."""
        if rng.random() < 0.1:
            self.newest += 1
        return f"buyer-{max(0, self.newest - int(rng.expovariate(0.7)))}"

    def event_of(self, buyer: str, rng: random.Random) -> dict[str, Any]:
        """Return the body of an event, perhaps known; rarely another one under a known id."""
        number, refund = rng.randint(1, 3), rng.random() < 0.3
        name = f"{buyer}/{'refund' if refund else 'order'}-{number}"
        if name not in self.bodies:
            body: dict[str, Any] = {"id": name, "external_id": buyer, "programme": PROGRAMME}
            if refund:
                part = {"amount": rng.choice([100, MINIMUM]), "unit": UNIT}
                body |= {"type": "refund", "refunds": f"{buyer}/order-{number}"}
                body |= part if rng.random() < 0.5 else {}
            else:
                body |= {"type": rng.choice(["purchase", "purchase", "visit"])}
                body |= {"amount": rng.choice([500, MINIMUM, 4900]), "unit": UNIT}
                if rng.random() < 0.2:
                    body["occurred_at"] = _text(datetime.now(UTC) - _A_WHILE_AGO)
            self.bodies[name] = body
        known = self.bodies[name]
        return {**known, "amount": 1, "unit": UNIT} if rng.random() < 0.03 else known


class Conversions:
    """Clients of a company, with its secret, and all they were answered."""

    def __init__(self, wire: Wire, client_id: str, secret: str) -> None:
        self._wire = wire
        self._headers = basic(client_id, secret)
        self._codes: list[str] = []
        self._buyers = Buyers()
        self._stopping = False

    async def prepare(self) -> None:
        """Make the programme, and the first participant with a code."""
        programme = {"key": PROGRAMME, "name": "Shop", "rules": _RULES}
        async with new_session() as session:
            made, answer = await self._wire.send(
                session, "POST", "/programmes", programme, self._headers
            )
            assert made == 201, answer
            await self._act(session, self._wire.rng, "take_part", _referrer(0))
            assert self._codes, self._wire.history.complaints

    async def run(self, clients: int) -> None:
        """Report until `stop`; raise nothing that a fault may cause."""
        await asyncio.gather(
            *(self._client(random.Random(self._wire.rng.random())) for _ in range(clients))
        )

    def stop(self) -> None:
        self._stopping = True

    async def repeat_all(self, clients: int) -> None:
        """Report every event once more: whatever became of it, now it is answered."""
        bodies = iter(self._buyers.bodies.values())

        async def client() -> None:
            async with new_session() as session:
                for body in bodies:
                    await self._act(session, self._wire.rng, "report", body)

        await asyncio.gather(*(client() for _ in range(clients)))

    async def _client(self, rng: random.Random) -> None:
        while not self._stopping:
            async with new_session() as session:
                for _ in range(rng.randint(1, 40)):
                    if self._stopping:
                        return
                    [kind] = rng.choices(list(_MIX), list(_MIX.values()))
                    await self._act(session, rng, kind, self._body(kind, rng))
                    await asyncio.sleep(rng.uniform(0, LONGEST_PAUSE))

    def _body(self, kind: Kind, rng: random.Random) -> dict[str, Any]:
        if kind == "take_part":
            return _referrer(rng.randrange(REFERRERS))
        buyer = self._buyers.choose(rng)
        if kind == "report":
            return self._buyers.event_of(buyer, rng)
        body = {"code": rng.choice(self._codes), "external_id": buyer, "programme": PROGRAMME}
        if rng.random() < 0.1:  # the window ends while the buyer is being reported
            ends = datetime.now(UTC) + timedelta(seconds=rng.uniform(0, 2))
            body["signed_up_at"] = _text(ends - WITHIN)
        return body

    async def _act(
        self, session: aiohttp.ClientSession, rng: random.Random, kind: Kind, body: dict[str, Any]
    ) -> None:
        call = Call(kind=kind, body=body)
        once = {"Idempotency-Key": str(uuid4())} if rng.random() < 0.2 else {}
        for attempt in range(TRIES if once else 1):
            if attempt:
                await asyncio.sleep(0.3)
            try:
                await self._send(session, call, once)
                break
            except Unanswered as unanswered:
                self._wire.tally.errors[str(unanswered)] += 1
        self._wire.history.calls.append(call)

    async def _send(self, session: aiohttp.ClientSession, call: Call, once: dict[str, str]) -> None:
        path = _PATHS[call.kind]
        status, answer = await self._wire.send(
            session, "POST", path, call.body, self._headers | once
        )
        if status not in _ALLOWED[call.kind] or (
            status == 409 and answer.get("code") not in _REFUSALS
        ):
            raise self._wire.complain("POST", path, status, answer)
        self._wire.answered(call.kind)
        call.status, call.answer = status, answer
        if call.kind == "take_part" and answer["code"] not in self._codes:
            self._codes.append(answer["code"])


def _referrer(number: int) -> dict[str, Any]:
    code = {"expires_in_days": 365}
    return {"external_id": f"referrer-{number}", "programme": PROGRAMME, "code": code}


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
