"""The rows of `make bench` about webhooks: how fast they arrive, also while other receivers hang.

The bench commits messages itself, as other processes of the service would, and has the receivers;
one worker of the service delivers.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeAlias

import asyncpg
from aiohttp import web
from uuid6 import uuid7

from service.api.docs.webhooks import example_of
from service.domain.webhook_deliveries import Endpoint
from service.domain.webhooks import EventType
from service.repositories.webhook_endpoints import WebhookEndpointRepository
from service.repositories.webhook_messages import NewMessage, WebhookMessageRepository
from tests.e2e.processes import LOOPBACK, ROOT
from tests.load import servers
from tests.load.pairs import Bench
from tests.load.report import Row

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
TAKES_SECONDS: Final = 0.02
"""How long a receiver takes to answer."""
LEAST: Final = 200
"""Deliveries a second."""
BACKLOG: Final = 500
"""Messages that wait, for each second of a round."""
ENDPOINTS, HANGING = 10, 5
SHARED: Final = 20
"""Messages a second, each to all endpoints, while half of them hang."""
TIMES_AS_LONG: Final = 6
"""Rounds with receivers that hang are so much longer: until attempts to them have timed out."""
LATE_SECONDS: Final = 30.0
"""What has not arrived so long after the last commit never will."""
NOTHING: Final = """
    TRUNCATE webhook_endpoints, webhook_messages, webhook_deliveries, webhook_attempts;
    DELETE FROM jobs WHERE kind = 'delivery'
"""


@dataclass
class Receiver:
    """Notes when it answers each message, unless it hangs."""

    hangs: bool = False
    url: str = ""
    answered: dict[str, float] = field(default_factory=dict)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = web.Server(self._handle, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, LOOPBACK, 0).start()
            self.url = f"http://{LOOPBACK}:{runner.addresses[0][1]}/hook"
            yield
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(TAKES_SECONDS)
        self.answered.setdefault(request.headers["webhook-id"], time.monotonic())
        return web.Response(status=204)


def measure(bench: Bench) -> None:
    environment = {
        **bench.secrets.environment,
        "DATABASE_URL": bench.data.database_url,
        "REDIS_URL": bench.data.redis_url,
        "WEBHOOK_NETWORKS": "127.0.0.0/8",
    }
    with servers.service(environment, bench.folder / "service.log", ROOT):
        asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> None:
    database = await asyncpg.connect(bench.data.database_url)
    try:
        await _to_one(bench, database)
        await _beside_hanging_ones(bench, database)
    finally:
        await _remove_all(database)
        await database.close()


async def _remove_all(database: Database) -> None:
    """Remove endpoints and messages, though the worker may be about to deliver some."""
    while True:
        try:
            await database.execute(NOTHING)
        except asyncpg.DeadlockDetectedError:
            continue
        break


async def _to_one(bench: Bench, database: Database) -> None:
    rates, halves = [], []
    for _ in range(bench.pairs):
        receiver = Receiver()
        await _deliver(database, [receiver], BACKLOG * bench.seconds, seconds=0)
        at = sorted(receiver.answered.values())
        rates.append((len(at) - 1) / (at[-1] - at[0]))
        steady = await _deliver(database, [Receiver()], LEAST * bench.seconds, bench.seconds)
        halves.append(statistics.median(steady))
    receiver_of = f"one receiver of {TAKES_SECONDS * 1000:.0f} ms"
    bench.add(
        Row(
            f"webhooks that wait, to {receiver_of}",
            f"≥ {LEAST}/s",
            lambda _: statistics.median(rates) >= LEAST,
            told=f"{statistics.median(rates):.0f}/s ({min(rates):.0f} to {max(rates):.0f})",
        )
    )
    bench.add(
        Row(
            f"{LEAST} webhooks/s, to {receiver_of}",
            "half of them within 1 s of the commit",
            lambda _: statistics.median(halves) <= 1,
            told=f"{statistics.median(halves):.2f} s ({min(halves):.2f} to {max(halves):.2f})",
        )
    )


async def _beside_hanging_ones(bench: Bench, database: Database) -> None:
    ratios, told = [], ""
    seconds = bench.seconds * TIMES_AS_LONG
    for _ in range(bench.pairs):
        late = []
        for hanging in (0, HANGING):
            receivers = [Receiver() for _ in range(ENDPOINTS - HANGING)]
            receivers += [Receiver(hangs=True) for _ in range(hanging)]
            found = await _deliver(database, receivers, SHARED * seconds, seconds)
            late.append(found[int(len(found) * 0.95)])
        ratios.append(late[1] / late[0])
        told = f"{late[1] * 1000:.0f} ms instead of {late[0] * 1000:.0f} ms"
    ratio = statistics.median(ratios)
    bench.add(
        Row(
            f"webhooks to {ENDPOINTS - HANGING} receivers while {HANGING} others hang",
            "p95 ≤ 2.00 of alone",
            lambda _: ratio <= 2,
            told=f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {told}",
        )
    )


async def _deliver(
    database: Database, receivers: Sequence[Receiver], messages: float, seconds: float
) -> list[float]:
    """Commit messages to all receivers, one by one in so many seconds or all at once in none.

    Returns, sorted, the seconds from each commit to each answer of those that do not hang, once all
    have arrived.
    """
    committed: dict[str, float] = {}
    announced = example_of(EventType.REFERRAL_QUALIFIED)
    async with AsyncExitStack() as stack:
        await _remove_all(database)
        for slot, receiver in enumerate(receivers, 1):
            await stack.enter_async_context(receiver.serving())
            endpoint = Endpoint(
                endpoint_id=uuid7(), url=receiver.url, types=(), created_at=datetime.now(UTC)
            )
            await WebhookEndpointRepository(database).add(endpoint, slot)
        begun, at_once = time.monotonic(), 1 if seconds else int(messages)
        for number in range(0, int(messages), at_once):
            await asyncio.sleep(max(0.0, begun + number * seconds / messages - time.monotonic()))
            now = datetime.now(UTC)
            body = announced.body(now)
            new = [NewMessage(uuid7(), announced.type, body) for _ in range(at_once)]
            await WebhookMessageRepository(database).add(new, now)
            committed.update((str(message.message_id), time.monotonic()) for message in new)
        prompt = [receiver for receiver in receivers if not receiver.hangs]
        deadline = time.monotonic() + LATE_SECONDS
        while missing := sum(len(committed) - len(each.answered) for each in prompt):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{missing} webhooks do not arrive.")
            await asyncio.sleep(0.01)
    return sorted(
        at - committed[message_id]
        for receiver in prompt
        for message_id, at in receiver.answered.items()
    )
