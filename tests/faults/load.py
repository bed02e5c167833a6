"""Clients that register, create, replace, delete and look up, and record every answer."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import aiohttp

from tests.factories import PASSWORD
from tests.faults.history import History, Kind, Operation

TIMEOUT_SECONDS: Final = 4.0
TRIES: Final = 3
"""How often a request with an Idempotency-Key is sent at most, until its outcome is known."""
BUSY: Final = 6
QUIET: Final = 10
UNUSABLE: Final = "referral-code-unusable"
LONGEST_PAUSE: Final = 0.06
"""Seconds between two requests of a client."""
_MIX: Final[dict[Kind, int]] = {
    "look_up": 30,
    "show": 10,
    "create": 12,
    "replace": 12,
    "delete": 8,
    "register": 18,
}
_LOOK_UPS: Final[dict[Kind, int]] = {"look_up": 1}
_ALLOWED: Final[dict[Kind, set[int]]] = {
    "look_up": {200, 404},
    "show": {200, 404},
    "create": {201, 409},
    "replace": {200, 201},
    "delete": {204, 404},
    "register": {201, 409, 422},
}


class Unanswered(Exception):
    """A request without an answer, and why, in a word."""


@dataclass
class Owner:
    """A user with codes."""

    email: str
    token: str = ""
    limited: bool = False
    """Whether the codes have `max_uses`."""
    last_code: str | None = None
    """The last code that a client saw: others register with it, dead or alive."""


@dataclass
class Tally:
    """What a run was like for its clients."""

    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    answered: list[tuple[float, Kind]] = field(default_factory=list)
    """When look-ups and writes were answered properly."""
    new: Counter[Kind] = field(default_factory=Counter)
    """How often a company was answered that what it reported is new."""

    def longest_gap(self, begin: float, end: float, *kinds: Kind) -> float:
        """Return the longest time in which no request of the kinds was answered."""
        times = sorted(at for at, kind in self.answered if kind in kinds and begin < at < end)
        return max(later - at for at, later in itertools.pairwise([begin, *times, end]))


@dataclass
class Wire:
    """The way to one service, which may have several addresses."""

    urls: list[str]
    history: History
    rng: random.Random
    tally: Tally = field(default_factory=Tally)

    async def send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        body: Any,
        headers: Mapping[str, str],
    ) -> tuple[int, Any]:
        """Return the status and the answer; raise Unanswered if the outcome is unknown."""
        url = f"{self.rng.choice(self.urls)}/api/v1{path}"
        self.tally.requests += 1
        try:
            async with session.request(method, url, json=body, headers=headers) as response:
                answer = await response.json() if response.status != 204 else {}
                status = response.status
                retry_after = response.headers.get("Retry-After")
        except TimeoutError:
            raise Unanswered("time-out") from None
        except aiohttp.ClientConnectorError:
            raise Unanswered("refused") from None
        except (aiohttp.ClientError, ConnectionError):
            raise Unanswered("cut") from None
        if status == 503:
            if retry_after is None:
                self.history.complaints.append(f"503 without Retry-After: {answer}")
            raise Unanswered("503")
        return status, answer

    def answered(self, kind: Kind, *, new: bool = False) -> None:
        """Note that a request was answered properly."""
        self.tally.answered.append((monotonic(), kind))
        self.tally.new[kind] += new

    def complain(self, method: str, path: str, status: int, answer: Any) -> Unanswered:
        """Note an answer that no rule allows."""
        self.history.complaints.append(f"{method} {path} was answered {status}: {answer}")
        return Unanswered(str(status))


class Load:
    """Many clients that have accounts."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._busy = [
            Owner(f"owner{index}@example.com", limited=index % 3 == 2) for index in range(BUSY)
        ]
        # Written so rarely that a stale code in the cache stays long enough to be noticed.
        self._quiet = [Owner(f"owner{BUSY + index}@example.com") for index in range(QUIET)]
        self.owners = [*self._busy, *self._quiet]
        self._rng = wire.rng
        self._numbers = itertools.count(1)
        self._newest_email = "person0@example.com"
        self._stopping = False

    @property
    def tally(self) -> Tally:
        return self._wire.tally

    async def prepare(self) -> None:
        """Register the owners and sign them in."""
        async with new_session() as session:
            for owner in self.owners:
                body = {"email": owner.email, "password": PASSWORD}
                async with session.post(
                    f"{self._wire.urls[0]}/api/v1/auth/register", json=body
                ) as made:
                    assert made.status == 201, await made.text()
                await self._sign_in(session, owner)

    async def run(self, clients: int) -> None:
        """Make requests until `stop`; raise nothing that a fault may cause."""
        # Some only look up: no write of their own delays them.
        mixes = [_MIX] * clients + [_LOOK_UPS] * (clients // 4)
        await asyncio.gather(
            *(self._client(random.Random(self._rng.random()), mix) for mix in mixes)
        )

    def stop(self) -> None:
        self._stopping = True

    async def look_at_all(self) -> None:
        """Look every owner's code up, on several connections."""
        for _ in range(4):
            async with new_session() as session:
                for owner in self.owners:
                    await self._act(session, self._rng, "look_up", owner)

    async def _client(self, rng: random.Random, mix: dict[Kind, int]) -> None:
        while not self._stopping:
            # A new connection now and then, which may be another worker's.
            async with new_session() as session:
                for _ in range(rng.randint(1, 40)):
                    if self._stopping:
                        return
                    [kind] = rng.choices(list(mix), list(mix.values()))
                    often = kind != "look_up" and rng.random() > 0.02
                    owners = self._busy if often else self.owners
                    await self._act(session, rng, kind, rng.choice(owners))
                    await asyncio.sleep(rng.uniform(0, LONGEST_PAUSE))

    async def _act(
        self, session: aiohttp.ClientSession, rng: random.Random, kind: Kind, owner: Owner
    ) -> None:
        operation = Operation(kind=kind, owner=owner.email, begun=monotonic())
        method, path, body, once = self._request(operation, owner, rng)
        token = None if kind in {"look_up", "register"} else owner
        for attempt in range(TRIES if once else 1):
            if attempt:
                await asyncio.sleep(0.3)
            try:
                status, answer = await self._send(session, kind, method, path, body, token, once)
            except Unanswered as unanswered:
                self._wire.tally.errors[str(unanswered)] += 1
                if kind in {"look_up", "show"}:
                    return
                continue
            operation.status, operation.ended = status, monotonic()
            self._learn(operation, answer, owner)
            break
        self._note(operation)

    def _request(
        self, operation: Operation, owner: Owner, rng: random.Random
    ) -> tuple[str, str, Any, str | None]:
        """Return method, path, body and Idempotency-Key of a request."""
        once = str(uuid4()) if rng.random() < 0.4 else None
        match operation.kind:
            case "look_up":
                return "GET", f"/referral-code/{quote(owner.email)}", None, None
            case "show":
                return "GET", "/referral-code", None, None
            case "delete":
                return "DELETE", "/referral-code", None, None
            case "register":
                # Now and then an email address that another client registers at the same time.
                if rng.random() > 0.15:
                    self._newest_email = f"person{next(self._numbers)}@example.com"
                operation.email = self._newest_email
                body = {"email": operation.email, "password": PASSWORD}
                if owner.last_code and rng.random() < 0.85:
                    operation.code = body["referral_code"] = owner.last_code
                return "POST", "/auth/register", body, once
        operation.code = f"{owner.email.partition('@')[0].upper()}-{next(self._numbers)}"
        operation.max_uses = rng.randint(1, 4) if owner.limited else None
        wish = {"code": operation.code, "expires_in_days": 7}
        if operation.max_uses:
            wish["max_uses"] = operation.max_uses
        if operation.kind == "create":
            return "POST", "/referral-code", wish, once
        return "PUT", "/referral-code", wish, None

    async def _send(
        self,
        session: aiohttp.ClientSession,
        kind: Kind,
        method: str,
        path: str,
        body: Any,
        by: Owner | None,
        once: str | None,
    ) -> tuple[int, Any]:
        """Return the status and the answer; raise Unanswered if the outcome is unknown."""
        headers = {"Idempotency-Key": once} if once else {}
        if by:
            headers["Authorization"] = f"Bearer {by.token}"
        status, answer = await self._wire.send(session, method, path, body, headers)
        if status == 401 and by:
            with suppress(aiohttp.ClientError, OSError):
                await self._sign_in(session, by)
            raise Unanswered("401")
        if status not in _ALLOWED[kind] or (status == 422 and answer.get("code") != UNUSABLE):
            raise self._wire.complain(method, path, status, answer)
        self._wire.answered(kind)
        return status, answer

    async def _sign_in(self, session: aiohttp.ClientSession, owner: Owner) -> None:
        body = {"email": owner.email, "password": PASSWORD}
        async with session.post(
            f"{self._rng.choice(self._wire.urls)}/api/v1/auth/login", json=body
        ) as answer:
            if answer.status == 200:
                owner.token = (await answer.json())["access_token"]

    def _learn(self, operation: Operation, answer: Any, owner: Owner) -> None:
        match operation.kind, operation.status:
            case ("look_up" | "show", 200):
                operation.code = owner.last_code = answer["code"]
                if operation.kind == "show" and answer["max_uses"] is not None:
                    operation.uses = answer["uses"]
            case ("create" | "replace", 200 | 201):
                owner.last_code = operation.code
            case ("register", 201):
                operation.user_id = answer["id"]

    def _note(self, operation: Operation) -> None:
        self._wire.history.operations.append(operation)


def new_session() -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS))
    # A silent retry would be a second write with the same answer.
    session._retry_connection = False
    return session
