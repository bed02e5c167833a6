"""How long registering takes while the services outside answer, hang, or are not used at all.

    python -m tests.load.registering [--rounds 6] [--seconds 20] [--rate 20]

Three services on one PostgreSQL and one Valkey take turns, round by round: one without mail,
verification and enrichment (the control), one whose stand-ins answer, one whose stand-ins hang.
Registrations arrive at a fixed rate, and a latency begins when its registration was due. Hashes
cost what they cost in production.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import aiohttp

from service import embedded
from service.postgresql.migrations import apply_migrations
from tests.e2e.processes import Service, service_process
from tests.factories import new_secrets
from tests.stand_ins.clearbit import Clearbit
from tests.stand_ins.hunter import Hunter
from tests.stand_ins.smtp import SmtpServer

NO_LIMITS = {
    f"RATE_LIMIT_{name}": "off"
    for name in ("REGISTER", "LOGIN", "LOOKUP", "MAIL", "VERIFICATION", "WRITE")
}


async def environment_of(stack: AsyncExitStack, *, hanging: bool) -> dict[str, str]:
    """Start stand-ins of their own for one service, and return what leads there."""
    hunter = await stack.enter_async_context(Hunter().serving())
    clearbit = await stack.enter_async_context(Clearbit().serving())
    smtp = await stack.enter_async_context(SmtpServer().serving())
    hunter.hanging = clearbit.hanging = smtp.hanging = hanging
    return {
        "HUNTER_API_KEY": hunter.key,
        "HUNTER_URL": hunter.url,
        "ENRICHMENT_PROVIDER": "clearbit",
        "ENRICHMENT_API_KEY": clearbit.key,
        "ENRICHMENT_URL": clearbit.url,
        "SMTP_URL": smtp.url,
        "MAIL_FROM": "referrals@example.com",
    }


async def register(url: str, rate: float, seconds: float) -> list[float]:
    """Register people at the rate; return the latencies in milliseconds."""
    latencies: list[float] = []

    async def one(session: aiohttp.ClientSession, due_at: float) -> None:
        body = {"email": f"{uuid4().hex}@example.org", "password": "a long walk by the river"}
        async with session.post("/api/v1/auth/register", json=body) as answer:
            assert answer.status == 201, await answer.text()
        latencies.append((time.perf_counter() - due_at) * 1000)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as session:
        begun_at = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(int(rate * seconds)):
                due_at = begun_at + number / rate
                await asyncio.sleep(max(0, due_at - time.perf_counter()))
                tasks.create_task(one(session, due_at))
    return latencies


async def measure(rounds: int, seconds: float, rate: float) -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="load-")))
        database_url = stack.enter_context(embedded.postgresql(folder))
        apply_migrations(database_url)
        common: Mapping[str, str] = {
            **new_secrets(),
            **NO_LIMITS,
            "DATABASE_URL": database_url,
            "REDIS_URL": stack.enter_context(embedded.valkey(folder)),
        }
        log = stack.enter_context((folder / "log").open("w"))
        services: dict[str, Service] = {}
        for name, outside in {
            "not used": {},
            "answering": await environment_of(stack, hanging=False),
            "hanging": await environment_of(stack, hanging=True),
        }.items():
            services[name] = stack.enter_context(service_process({**common, **outside}, log))
        latencies: dict[str, list[list[float]]] = {name: [] for name in services}
        for round_number in range(rounds + 1):
            for name, service in services.items():
                found = await register(service.url, rate, seconds if round_number else 3)
                if round_number:  # the first is to warm up
                    latencies[name].append(found)
        show(latencies)


def show(latencies: Mapping[str, list[list[float]]]) -> None:
    control = [latency for found in latencies["not used"] for latency in found]
    print(f"{'outside':<10} {'count':>6} {'p50 ms':>7} {'p99 ms':>7} {'p50':>5} {'p99':>5}")
    for name, rounds in latencies.items():
        all_of_it = [latency for found in rounds for latency in found]
        p50, p99 = quantile(all_of_it, 50), quantile(all_of_it, 99)
        of_rounds = [quantile(found, 99) for found in rounds]
        print(
            f"{name:<10} {len(all_of_it):>6} {p50:>7.1f} {p99:>7.1f} "
            f"{p50 / quantile(control, 50):>5.2f} {p99 / quantile(control, 99):>5.2f}"
            f"   p99 of the rounds: {min(of_rounds):.1f} to {max(of_rounds):.1f}"
        )


def quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=float, default=20, help="registrations a second")
    parsed = parser.parse_args()
    asyncio.run(measure(parsed.rounds, parsed.seconds, parsed.rate))
