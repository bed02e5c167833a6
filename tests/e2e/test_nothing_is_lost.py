"""What registering causes is done, whatever dies or hangs meanwhile; no log holds secrets."""

import asyncio
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from service.domain.jobs import CLAIMED_FOR
from tests.e2e.processes import COMMAND, Service, service_process, started
from tests.stand_ins.clearbit import Clearbit
from tests.stand_ins.hunter import Hunter
from tests.stand_ins.smtp import SmtpServer

PASSWORD = "a long walk by the river"
SMTP_PASSWORD = "open-sesame-of-smtp"
HUNTER_KEY = "key-of-hunter-5f1c"
CLEARBIT_KEY = "key-of-clearbit-77ab"


@dataclass(frozen=True)
class Outside:
    """The services outside, as stand-ins, and the environment that leads to them."""

    hunter: Hunter
    clearbit: Clearbit
    smtp: SmtpServer
    environment: Mapping[str, str]

    def hang(self, hanging: bool) -> None:
        self.hunter.hanging = self.clearbit.hanging = self.smtp.hanging = hanging


@pytest.fixture
async def outside(environment: dict[str, str]) -> AsyncIterator[Outside]:
    async with (
        Hunter(HUNTER_KEY).serving() as hunter,
        Clearbit(CLEARBIT_KEY).serving() as clearbit,
        SmtpServer(credentials=("referrals", SMTP_PASSWORD)).serving() as smtp,
    ):
        told = {
            "HUNTER_API_KEY": HUNTER_KEY,
            "HUNTER_URL": hunter.url,
            "ENRICHMENT_PROVIDER": "clearbit",
            "ENRICHMENT_API_KEY": CLEARBIT_KEY,
            "ENRICHMENT_URL": clearbit.url,
            "SMTP_URL": smtp.url.replace("//", f"//referrals:{SMTP_PASSWORD}@"),
            "MAIL_FROM": "referrals@example.com",
            "LOG_LEVEL": "debug",
        }
        yield Outside(hunter, clearbit, smtp, {**environment, **told})


def email_of(number: int) -> str:
    return f"person{number}@example.org"


async def register(url: str, numbers: range, seconds: float = 0) -> None:
    """Register people, spread over so many seconds, twenty at once."""
    waiting = iter(numbers)
    started_at = time.monotonic()

    async def some(session: aiohttp.ClientSession) -> None:
        for number in waiting:
            due_at = started_at + seconds * (number - numbers.start) / len(numbers)
            await asyncio.sleep(max(0, due_at - time.monotonic()))
            body = {"email": email_of(number), "password": PASSWORD}
            async with session.post("/api/v1/auth/register", json=body) as answer:
                assert answer.status == 201, await answer.text()

    async with aiohttp.ClientSession(url) as session:
        await asyncio.gather(*(some(session) for _ in range(20)))


async def all_done(service: Service, seconds: float) -> None:
    """Wait until no job is left."""
    connection = await asyncpg.connect(service.environment["DATABASE_URL"])
    try:
        async with asyncio.timeout(seconds):
            while await connection.fetchval("SELECT count(*) FROM jobs WHERE parked_at IS NULL"):
                await asyncio.sleep(0.1)
    finally:
        await connection.close()


async def let_claims_end(service: Service) -> None:
    """Let the claims of a killed worker on its jobs expire."""
    connection = await asyncpg.connect(service.environment["DATABASE_URL"])
    try:
        await connection.execute("UPDATE jobs SET due_at = due_at - $1::interval", CLAIMED_FOR)
    finally:
        await connection.close()


async def asked(service: Service, query: str) -> int:
    connection = await asyncpg.connect(service.environment["DATABASE_URL"])
    try:
        count: int = await connection.fetchval(query)
    finally:
        await connection.close()
    return count


def assert_nothing_secret(log: str, outside: Outside) -> None:
    assert len(log.splitlines()) > 10
    for mail in outside.smtp.mails:
        found = re.search(r"confirm:\s+(\S{43})\s", mail.text)
        assert found
        assert found[1] not in log
    for secret in (HUNTER_KEY, CLEARBIT_KEY, SMTP_PASSWORD, PASSWORD, "@example", "%40example"):
        assert secret not in log


async def test_a_worker_that_is_killed_again_and_again_loses_nothing(
    outside: Outside, tmp_path: Path
) -> None:
    people, kills = 400, 12
    log = tmp_path / "log"
    with ExitStack() as stack:
        told = {**outside.environment, "SERVE_JOBS": "off"}
        written = stack.enter_context(log.open("w"))
        service = stack.enter_context(service_process(told))
        registering = asyncio.create_task(register(service.url, range(people), seconds=kills))
        for _ in range(kills):
            with started([*COMMAND, "worker"], service.environment, stderr=written) as worker:
                async with asyncio.timeout(30):
                    sent = len(outside.smtp.mails)
                    while len(outside.smtp.mails) < sent + 5:  # it has started, and is at work
                        await asyncio.sleep(0.01)
                worker.send_signal(signal.SIGKILL)
        await registering
        await let_claims_end(service)
        stack.enter_context(started([*COMMAND, "worker"], service.environment, stderr=written))
        await all_done(service, seconds=120)

        assert await asked(service, "SELECT count(*) FROM jobs") == 0
        verdicts = "SELECT count(*) FROM users WHERE email_verdict = 'valid'"
        assert await asked(service, verdicts) == people
        assert await asked(service, "SELECT count(*) FROM enrichments") == people
    mails = Counter(mail.rcpt_tos[0] for mail in outside.smtp.mails)
    assert set(mails) == set(map(email_of, range(people)))
    assert mails.total() <= people + kills
    assert max(mails.values()) <= 2
    assert len(outside.hunter.requests) <= people + kills
    assert len(outside.clearbit.requests) <= people + kills
    calls = f"{len(outside.hunter.requests)} verifications, {len(outside.clearbit.requests)}"
    print(f"{people} people, {kills} kills: {mails.total()} mails, {calls} enrichments")
    assert_nothing_secret(log.read_text(), outside)


async def test_while_everything_outside_hangs_registering_goes_on_and_is_made_up_for(
    outside: Outside, tmp_path: Path
) -> None:
    people = 200
    log = tmp_path / "log"
    with ExitStack() as stack:
        written = stack.enter_context(log.open("w"))
        service = stack.enter_context(service_process(outside.environment, written))
        outside.hang(True)
        await register(service.url, range(people), seconds=8)
        assert outside.smtp.mails == []
        outside.hang(False)
        await all_done(service, seconds=120)

        assert await asked(service, "SELECT count(*) FROM jobs") == 0
        verdicts = "SELECT count(*) FROM users WHERE email_verdict = 'valid'"
        assert await asked(service, verdicts) == people
        assert await asked(service, "SELECT count(*) FROM enrichments") == people
    mails = Counter(mail.rcpt_tos[0] for mail in outside.smtp.mails)
    assert set(mails) == set(map(email_of, range(people)))
    assert_nothing_secret(log.read_text(), outside)
