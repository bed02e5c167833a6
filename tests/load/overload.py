"""`make overload`: three times what one worker can do, and what it still does.

    python -m tests.load.overload [--seed N] [--seconds S] [--only WORK …]

Clients come on a schedule, whether or not the earlier ones were answered; one without an answer
after a second leaves, and closes the connection. That is what production is like. A closed loop
would not show it, because its clients slow down with the service. The capacity is the best rate of
right answers in time; then three times as many clients come. The service has a core of its own;
the crowd, PostgreSQL and Valkey have the others.
"""

import argparse
import asyncio
import itertools
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from service import embedded
from service.postgresql.migrations import apply_migrations
from tests.e2e.processes import COMMAND, LOOPBACK, free_port, started, wait_for
from tests.factories import PASSWORD, new_secrets
from tests.load.crowd import Crowd, Found, Wish
from tests.load.machine import OTHER_CORES, SERVER_CORE, pinned_to, pss_mib

LIMIT_SECONDS: Final = 1.0
TIMES: Final = 3
NEAR_PEAK: Final = (0.8, 0.9, 1.0)
"""Shares of a closed loop's rate at which the best rate of an open one is searched."""
GOODPUT: Final = 0.9
HEALTH_MS: Final = 100.0
GROWTH_MIB: Final = 64.0
"""How much more memory one worker may take."""
OWNERS: Final = 500
NOBODY: Final = "redis://127.0.0.1:1"
DEAR: Final = {"ARGON2_MEMORY_KIB": "19456", "ARGON2_PASSES": "2"}
CHEAP: Final = {"ARGON2_MEMORY_KIB": "64", "ARGON2_PASSES": "1"}
PUBLIC_URL: Final = "http://localhost"
"""The same for all services: it is the audience of the tokens."""
API: Final = "/api/v1"
LIMITED: Final = ("REGISTER", "LOGIN", "LOOKUP", "MAIL", "VERIFICATION", "WRITE")
HEAD: Final = (
    "work", "peak/s", "offered/s", "good/s", "ratio", "others", "p99 ms", "health p99, max ms",
    "MiB before, most, after", "crowd late ms",
)  # fmt: skip


@dataclass(frozen=True)
class Account:
    """The owner of a code."""

    email: str
    token: str
    code: str


def request(method: str, path: str, body: object = None, token: str = "") -> bytes:
    lines = [f"{method} {API}{path} HTTP/1.1", "Host: localhost"]
    sent = b"" if body is None else json.dumps(body).encode()
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(sent)}"]
    return "\r\n".join([*lines, "", ""]).encode() + sent


def look_ups(owners: list[Account]) -> Iterator[Wish]:
    for owner in itertools.cycle(owners):
        yield Wish(request("GET", f"/referral-code/{owner.email}"), b"200", owner.code.encode())


def unknown(_: list[Account]) -> Iterator[Wish]:
    for number in itertools.count():
        yield Wish(request("GET", f"/referral-code/nobody{number % 5000}@example.com"), b"404")


def sign_ins(_: list[Account]) -> Iterator[Wish]:
    body = {"email": "owner0@example.com", "password": PASSWORD}
    yield from itertools.repeat(Wish(request("POST", "/auth/login", body), b"200"))


def registrations(_: list[Account]) -> Iterator[Wish]:
    run = secrets.token_hex(4)
    for number in itertools.count():
        body = {"email": f"new{run}{number}@example.com", "password": PASSWORD}
        yield Wish(request("POST", "/auth/register", body), b"201")


def creations(owners: list[Account]) -> Iterator[Wish]:
    for owner in itertools.cycle(owners):
        wish = {"expires_in_days": 30}
        yield Wish(request("PUT", "/referral-code", wish, owner.token), b"200")


@dataclass(frozen=True)
class Work:
    """The requests, how many clients find the capacity, and the service's settings."""

    wishes: Callable[[list[Account]], Iterator[Wish]]
    connections: int = 64
    environment: Mapping[str, str] = field(default_factory=dict)


WORK: Final = {
    "look-ups": Work(look_ups),
    "look-ups, Redis away": Work(look_ups, environment={"REDIS_URL": NOBODY}),
    "look-ups of unknown email addresses": Work(unknown),
    "sign-ins": Work(sign_ins, connections=8),
    "registrations": Work(registrations, connections=8),
    "new codes": Work(creations),  # last: it changes what the look-ups find
}


@contextmanager
def service(environment: Mapping[str, str], log: Path) -> Iterator[tuple[str, int]]:
    """Run one worker on its core; yield its URL and process id."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    own = {"HOST": LOOPBACK, "PORT": str(port), "PUBLIC_URL": PUBLIC_URL, "WORKERS": "1"}
    command = pinned_to({SERVER_CORE}, [*COMMAND, "serve"])
    with log.open("a") as file, started(command, {**environment, **own}, stderr=file) as process:
        wait_for(f"{url}/health/ready", process)
        yield url, process.pid


async def make_accounts(url: str) -> list[Account]:
    """Make signed-in owners of codes."""

    async def make(session: aiohttp.ClientSession, number: int) -> Account:
        body = {"email": f"owner{number}@example.com", "password": PASSWORD}
        async with session.post(f"{API}/auth/register", json=body) as answer:
            assert answer.status == 201
        async with session.post(f"{API}/auth/login", json=body) as answer:
            token = (await answer.json())["access_token"]
        signed_in = {"Authorization": f"Bearer {token}"}
        wish = {"expires_in_days": 30}
        path = f"{API}/referral-code"
        async with session.post(path, json=wish, headers=signed_in) as answer:
            return Account(body["email"], token, (await answer.json())["code"])

    connector = aiohttp.TCPConnector(limit=8)
    async with aiohttp.ClientSession(url, connector=connector) as session:
        return await asyncio.gather(*(make(session, number) for number in range(OWNERS)))


@dataclass(frozen=True)
class Watched:
    """The worker's health and memory during the overload."""

    health: list[float]
    most_mib: float


def watch(url: str, pid: int, seconds: float) -> Watched:
    """Ask for its health every 50 ms on a connection of its own, and measure its memory."""
    address = urlsplit(url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=10)
    health, most = [], 0.0
    until = due = time.perf_counter()
    until += seconds
    for number in itertools.count():
        if due > until:
            break
        time.sleep(max(0.0, due - time.perf_counter()))
        connection.request("GET", "/health/live")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        # Counted from when it is sent: waiting for the one before says nothing new.
        health.append((time.perf_counter() - due) * 1000)
        due = max(due + 0.05, time.perf_counter())
        if number % 10 == 0:
            most = max(most, pss_mib([pid]))
    return Watched(health, most)


@dataclass(frozen=True)
class Row:
    """The result of one kind of work."""

    name: str
    peak: float
    found: Found
    watched: Watched
    before_mib: float
    after_mib: float

    @property
    def complaints(self) -> list[str]:
        return [
            complaint
            for complaint, holds in {
                f"goodput under {GOODPUT} of the peak": self.found.rate >= GOODPUT * self.peak,
                f"health over {HEALTH_MS:.0f} ms": p99(self.watched.health) < HEALTH_MS,
                f"memory grew by more than {GROWTH_MIB:.0f} MiB": (
                    self.watched.most_mib < self.before_mib + GROWTH_MIB
                ),
            }.items()
            if not holds
        ]

    def cells(self) -> list[str]:
        found, watched = self.found, self.watched
        others = ", ".join(f"{kind} {count}" for kind, count in found.others.most_common())
        return [
            self.name,
            f"{self.peak:.0f}",
            f"{len(found.lateness) / found.seconds:.0f}",
            f"{found.rate:.0f}",
            f"{found.rate / self.peak:.2f}",
            others,
            f"{p99(found.good):.0f}",
            f"{p99(watched.health):.0f}, {max(watched.health):.0f}",
            f"{self.before_mib:.0f}, {watched.most_mib:.0f}, {self.after_mib:.0f}",
            f"{p99(found.lateness):.0f}",
        ]


def measure(
    name: str,
    environment: Mapping[str, str],
    owners: list[Account],
    folder: Path,
    seconds: float,
    seed: int,
) -> Row:
    work = WORK[name]
    with (
        service({**environment, **DEAR, **work.environment}, folder / "service.log") as (url, pid),
        ProcessPoolExecutor(1) as beside,
    ):
        wishes = work.wishes(owners)
        crowd = Crowd(url, lambda: next(wishes), LIMIT_SECONDS)
        crowd.closed_loop(work.connections, 1)
        time.sleep(0.5)  # what these clients left is still being hashed
        most = crowd.closed_loop(work.connections, 2)
        if most.others:
            raise RuntimeError(f"{name}: {dict(most.others)} of a closed loop.")
        peak = max(crowd.open_loop(most.rate * of, 2, seed).rate for of in NEAR_PEAK)
        time.sleep(0.5)
        before = pss_mib([pid])
        watching = beside.submit(watch, url, pid, seconds)
        found = crowd.open_loop(TIMES * peak, seconds, seed)
        watched = watching.result()
        time.sleep(1)
        return Row(name, peak, found, watched, before, pss_mib([pid]))


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))] if values else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.overload", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each overload")
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK), metavar="WORK")
    parsed = parser.parse_args()
    os.sched_setaffinity(0, OTHER_CORES)
    print(f"seed {parsed.seed}")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    complaints = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overload-")))
        database_url = stack.enter_context(embedded.postgresql(folder))
        apply_migrations(database_url)
        environment = {
            **new_secrets(),
            **{f"RATE_LIMIT_{name}": "999999999/minute" for name in LIMITED},
            "DATABASE_URL": database_url,
            "REDIS_URL": stack.enter_context(embedded.valkey(folder)),
            "ACCESS_TOKEN_TTL_SECONDS": "86400",
            "ENV_FILE": os.devnull,
        }
        with service({**environment, **CHEAP}, folder / "service.log") as (url, _):
            owners = asyncio.run(make_accounts(url))
        for name in (name for name in WORK if name in parsed.only):
            row = measure(name, environment, owners, folder, parsed.seconds, parsed.seed)
            print(f"| {' | '.join(row.cells())} |", flush=True)
            complaints += [f"{name}: {complaint}" for complaint in row.complaints]
    for complaint in complaints:
        print(f"MISSED {complaint}")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
