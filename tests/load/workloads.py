"""What is asked: requests as wrk's script reads them, drawn from a seeded Zipf distribution."""

import itertools
import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from service.domain.pages import Cursor
from tests.load.servers import row_id

API: Final = "/api/v1"
SEED: Final = 20261121
DRAWS: Final = 20_000
LIVE_CODES: Final = 200_000
SIGNED_IN: Final = 1000
OWNERS_FROM: Final = 900_001
"""The first of the users with a session and without a code, who create codes."""
REFERRERS: Final = {3: 10**7, 2: 10**5, 1: 10**3}
Token = Callable[[int], str]
"""Returns the Authorization header of the user of that number."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; "-" stands for no Authorization, no X-Forwarded-For, no body."""

    path: str
    method: str = "GET"
    authorization: str = "-"
    forwarded_for: str = "-"
    body: str = "-"

    def line(self) -> str:
        return (
            f"{self.method}\t{self.path}\t{self.authorization}\t{self.forwarded_for}\t{self.body}\n"
        )

    def bytes(self) -> bytes:
        """Return what is sent, of a request that is nothing but a path."""
        return f"{self.method} {self.path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def look_ups(_: Token) -> list[Request]:
    """Look up referrers' codes, popular ones more often; 2 % of the addresses have no account."""
    strangers = random.Random(SEED + 1)
    return [
        _look_up(f"{'stranger' if strangers.random() < 0.02 else 'person'}{rank}@example.com")
        for rank in _zipf(LIVE_CODES)
    ]


def forwarded_look_ups(token: Token) -> list[Request]:
    """The same by way of a proxy, for 250 clients."""
    return [
        replace(look_up, forwarded_for=f"198.51.100.{number % 250 + 1}")
        for number, look_up in enumerate(look_ups(token))
    ]


def unknown_look_ups(_: Token) -> list[Request]:
    """Look up email addresses without an account, some more often."""
    return [_look_up(f"stranger{rank}@example.com") for rank in _zipf(LIVE_CODES)]


def own_accounts(token: Token) -> list[Request]:
    return [
        Request(f"{API}/users/me", authorization=token(number))
        for number in range(1, SIGNED_IN + 1)
    ]


def pages(referrer: int, *, deep: bool) -> Callable[[Token], list[Request]]:
    """Show a page of 20 referrals: the first, or one from the middle of all."""
    before = sum(count for number, count in REFERRERS.items() if number < referrer)
    middle = 1_000_001 + before + REFERRERS[referrer] // 2
    # As data.sql has it: a millisecond after the user before.
    at = datetime.fromtimestamp(datetime(2025, 6, 15, tzinfo=UTC).timestamp() + middle / 1000, UTC)
    query = f"?cursor={Cursor(at, row_id(1, middle)).encode()}" if deep else ""

    def requests(token: Token) -> list[Request]:
        return [Request(f"{API}/referrals/me{query}", authorization=token(referrer))]

    return requests


def codes(token: Token) -> list[Request]:
    """Create and delete codes; between the two of one user there are 255 other requests."""
    wish = json.dumps({"expires_in_days": 30})
    requests = []
    for first in range(OWNERS_FROM, OWNERS_FROM + 1024, 256):
        tokens = [token(number) for number in range(first, first + 256)]
        requests += [Request(f"{API}/referral-code", "POST", one, body=wish) for one in tokens]
        requests += [Request(f"{API}/referral-code", "DELETE", one) for one in tokens]
    return requests


def registrations(_: Token) -> list[Request]:
    body = json.dumps({"email": "new{n}@example.com", "password": "a long walk by the river"})
    return [Request(f"{API}/auth/register", "POST", body=body)]


def registrations_with_codes(_: Token) -> list[Request]:
    """Register with the codes of many referrers, and with email addresses never used before."""
    codes = random.Random(SEED).sample(range(1, LIVE_CODES + 1), 1000)
    made = time.time_ns()
    bodies = [
        json.dumps(
            {
                "email": f"n{made}-{number}-{{n}}@example.com",
                "password": "a long walk by the river",
                "referral_code": f"PERSON-{number}",
            }
        )
        for number in codes
    ]
    return [Request(f"{API}/auth/register", "POST", body=body) for body in bodies]


def to_file(requests: Iterable[Request]) -> str:
    return "".join(request.line() for request in requests)


def _look_up(email: str) -> Request:
    return Request(f"{API}/referral-code/{email}")


def _zipf(population: int) -> list[int]:
    weights = list(itertools.accumulate(1 / rank for rank in range(1, population + 1)))
    return random.Random(SEED).choices(range(1, population + 1), cum_weights=weights, k=DRAWS)
