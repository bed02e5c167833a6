"""A company that reports what its users do, in any order, from many clients at once.

Participants share codes; several clients report one sign-up with different codes, purchases,
refunds before and after what they refund, and all of it again. Others pay out what was earned,
take payouts back, adjust balances and review referrals, likewise.
"""

import asyncio
import random
from collections import defaultdict, deque
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import uuid4

import aiohttp

from tests.company import basic
from tests.faults.history import Call, Kind
from tests.faults.load import TRIES, Unanswered, Wire, new_session
from tests.faults.shop import (
    PROGRAMME,
    REFERRERS,
    RULES,
    Buyers,
    Movements,
    generation_of,
    keeps,
    newest_of,
    referrer,
    verdict,
)

SCOPES: Final = "events:write programme:read programme:manage rewards:write"
REPEATED: Final = 1000
"""How many of the newest events and movements are repeated in the end."""
_LONGEST_PAUSE: Final = 0.02
"""Seconds between two requests of a client."""
_MIX: Final[dict[Kind, int]] = {
    "take_part": 1,
    "sign_up": 4,
    "report": 12,
    "redeem": 2,
    "cancel": 1,
    "adjust": 1,
    "review": 1,
}
_PATHS: Final[dict[Kind, str]] = {
    "take_part": "/participants",
    "sign_up": "/referrals",
    "report": "/events",
    "redeem": "/redemptions",
    "cancel": "/redemptions/{}/cancel",
    "adjust": "/adjustments",
    "review": "/referees/{}/decisions",
}
_REFUSALS: Final[dict[Kind, set[str]]] = {
    "sign_up": {"already-referred"},
    "report": {"id-reused"},
    "redeem": {"id-reused", "balance-too-low"},
    "adjust": {"id-reused"},
}


class _Code(NamedTuple):
    code: str
    device: str


class Conversions:
    """Clients of a company, with its secret, and all they were answered."""

    def __init__(self, wire: Wire, client_id: str, secret: str) -> None:
        self._wire = wire
        self._headers = basic(client_id, secret)
        self._codes: defaultdict[int, set[_Code]] = defaultdict(set)
        self._buyers = Buyers()
        self._movements = Movements()
        self._suspicious: deque[str] = deque(maxlen=15)
        self._referrals: deque[str] = deque(maxlen=15)
        self._payouts: deque[str] = deque(maxlen=15)
        self._thanked: set[int] = set()
        self._unanswered: list[Call] = []
        self._stopping = False

    async def prepare(self) -> None:
        """Make the programme, and the first participant with a code."""
        programme = {"key": PROGRAMME, "name": "Shop", "rules": RULES}
        async with new_session() as session:
            made, answer = await self._wire.send(
                session, "POST", "/programmes", programme, self._headers
            )
            assert made == 201, answer
            await self._act(session, self._wire.rng, Call(kind="take_part", body=referrer(0, 0)))
            assert self._codes, self._wire.history.complaints

    async def run(self, clients: int) -> None:
        """Report until `stop`; raise nothing that a fault may cause."""
        await asyncio.gather(
            *(self._client(random.Random(self._wire.rng.random())) for _ in range(clients))
        )

    def stop(self) -> None:
        self._stopping = True

    async def repeat(self, clients: int) -> None:
        """Repeat what was not answered, and the newest of all: now it is answered."""
        calls = [Call(kind=one.kind, body=one.body, about=one.about) for one in self._unanswered]
        calls += [
            Call(kind="report", body=body) for body in newest_of(self._buyers.bodies, REPEATED)
        ]
        for body in newest_of(self._movements.bodies, REPEATED):
            calls += [
                Call(kind="redeem" if body["id"].startswith("payout") else "adjust", body=body)
            ]
        left = iter(calls)

        async def client() -> None:
            async with new_session() as session:
                for call in left:
                    await self._act(session, self._wire.rng, call)

        await asyncio.gather(*(client() for _ in range(clients)))

    async def _client(self, rng: random.Random) -> None:
        while not self._stopping:
            async with new_session() as session:
                for _ in range(rng.randint(1, 40)):
                    if self._stopping:
                        return
                    if self._thanked and rng.random() < 0.08:
                        buyer = rng.choice(sorted(self._thanked))
                        bodies = self._buyers.regrets_of(buyer, rng)
                        calls = [Call(kind="report", body=body) for body in bodies]
                    else:
                        buyer = self._buyers.choose(rng)
                        both = rng.random() < 0.2  # of one buyer at once
                        calls = [self._next(buyer, rng) for _ in range(1 + both)]
                    await asyncio.gather(*(self._act(session, rng, call) for call in calls))
                    await asyncio.sleep(rng.uniform(0, _LONGEST_PAUSE))

    def _next(self, buyer: int, rng: random.Random) -> Call:
        generation = generation_of(buyer)
        codes = sorted(self._codes[generation])
        [kind] = rng.choices(list(_MIX), list(_MIX.values())) if codes else ["take_part"]
        match kind:
            case "take_part":
                return Call(kind=kind, body=referrer(generation, rng.randrange(REFERRERS)))
            case "sign_up":
                body = self._buyers.sign_up_of(buyer, *rng.choice(codes), rng)
                return Call(kind=kind, body=body)
            case "redeem":
                return Call(kind=kind, body=self._movements.payout(rng))
            case "adjust":
                return Call(kind=kind, body=self._movements.adjustment(rng))
            case "cancel" if self._payouts:
                return Call(kind=kind, body={}, about=rng.choice(self._payouts))
            case "review" if self._suspicious or self._referrals:
                often = self._suspicious and rng.random() < 0.7
                among = self._suspicious if often or not self._referrals else self._referrals
                return Call(kind=kind, body=verdict(rng), about=rng.choice(among))
        return Call(kind="report", body=self._buyers.event_of(buyer, rng))

    async def _act(self, session: aiohttp.ClientSession, rng: random.Random, call: Call) -> None:
        once = {"Idempotency-Key": str(uuid4())} if not call.about and rng.random() < 0.2 else {}
        call.begun = monotonic()
        for attempt in range(TRIES if once else 1):
            if attempt:
                await asyncio.sleep(0.3)
            try:
                await self._send(session, call, once)
                break
            except Unanswered as unanswered:
                self._wire.tally.errors[str(unanswered)] += 1
        else:
            self._unanswered.append(call)
        self._wire.history.calls.append(call)

    async def _send(self, session: aiohttp.ClientSession, call: Call, once: dict[str, str]) -> None:
        path = _PATHS[call.kind].format(call.about)
        status, answer = await self._wire.send(
            session, "POST", path, call.body or None, self._headers | once
        )
        refused = status == 409 and answer.get("code") in _REFUSALS.get(call.kind, ())
        if status not in {200, 201} and not refused:
            raise self._wire.complain("POST", path, status, answer)
        self._wire.answered(call.kind, new=status == 201)
        call.status, call.ended, call.answer = status, monotonic(), _kept(call.kind, answer)
        if call.acknowledged:
            self._learn(call, answer)

    def _learn(self, call: Call, answer: Any) -> None:
        match call.kind:
            case "take_part":
                name = call.body["external_id"]
                self._codes[_number(call)].add(_Code(call.answer["code"], name))
                self._movements.people.append(name)
            case "sign_up":
                self._movements.people.append(call.body["external_id"])
                if not keeps(_number(call)):
                    suspicious = call.answer["review"] == "open"
                    (self._suspicious if suspicious else self._referrals).append(call.answer["id"])
            case "report":
                # Who has one of the few places gives it back: another one is to get it.
                live = {one["rule"] for one in answer["rewards"] if one["state"] != "reversed"}
                (self._thanked.add if "thanks" in live else self._thanked.discard)(_number(call))
            case "redeem" if call.status == 201:
                self._payouts.append(call.answer["id"])


def _number(call: Call) -> int:
    """Return the number of the buyer, or of the generation of a referrer."""
    return int(call.body["external_id"].split("-")[1])


def _kept(kind: Kind, answer: Any) -> Any:
    """Return what of an answer is judged: a long run has many."""
    kept = {name: answer[name] for name in _KEPT if name in answer}
    if kind == "report" and "event" in answer:
        referral = answer["referral"]
        kept["rewards"] = [reward["id"] for reward in answer["rewards"]]
        kept["referral"] = referral and {
            name: referral[name] for name in ("id", "sequence", "state")
        }
    return kept


_KEPT: Final = (
    "id",
    "code",
    "participant_id",
    "referrer_id",
    "state",
    "sequence",
    "review",
    "event",
    "outcome",
    "unit",
    "amount",
    "available",
)
