"""Connections are handed on in order, and none that was left amid something is used again."""

import asyncio
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.domain.errors import DatabaseUnavailable
from service.postgresql.database import Database
from service.postgresql.pool import BURST_SECONDS, MOST_WAITING, Connections, QueueFull
from tests.conftest import Servers


@pytest.fixture
async def opened(servers: Servers, database: asyncpg.Connection) -> AsyncIterator[Connections]:
    connections = Connections(lambda: asyncpg.connect(servers.database_url), 2)
    yield connections
    await connections.close()


async def backend_of(connection: asyncpg.Connection) -> int:
    pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    return pid


async def test_connections_are_opened_when_needed_and_used_again(opened: Connections) -> None:
    assert (opened.size, opened.idle) == (0, 0)
    first = await opened.acquire()
    second = await opened.acquire()
    assert first is not second
    assert (opened.size, opened.idle) == (2, 0)
    opened.release(first, whole=True)
    assert await opened.acquire() is first
    opened.release(first, whole=True)
    opened.release(second, whole=True)
    assert (opened.size, opened.idle) == (2, 2)


async def test_whoever_waits_longest_is_first(opened: Connections) -> None:
    held = [await opened.acquire(), await opened.acquire()]
    served: list[int] = []

    async def use(number: int) -> None:
        connection = await opened.acquire()
        served.append(number)
        await backend_of(connection)
        opened.release(connection, whole=True)

    tasks = []
    for number in range(20):
        tasks.append(asyncio.create_task(use(number)))
        await asyncio.sleep(0)
    for connection in held:
        opened.release(connection, whole=True)
    await asyncio.gather(*tasks)
    assert served == list(range(20))
    assert opened.size == 2


async def test_nobody_waits_for_ever(opened: Connections) -> None:
    opened.wait_seconds = 0.05
    held = [await opened.acquire(), await opened.acquire()]
    started = time.perf_counter()
    with pytest.raises(TimeoutError):
        await opened.acquire()
    assert time.perf_counter() - started < 1
    for connection in held:
        opened.release(connection, whole=True)
    assert opened.idle == 2, "and whoever gave up is handed nothing"


async def test_one_who_is_cancelled_while_handed_a_connection_hands_it_on(
    opened: Connections,
) -> None:
    held = [await opened.acquire(), await opened.acquire()]
    waiting = [asyncio.create_task(opened.acquire()) for _ in range(2)]
    await asyncio.sleep(0)
    opened.release(held[0], whole=True)  # the first one has it now, and has not run yet
    waiting[0].cancel()
    assert await waiting[1] is held[0]
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]


async def test_a_connection_that_is_gone_makes_room_for_another(opened: Connections) -> None:
    held = [await opened.acquire(), await opened.acquire()]
    waiting = asyncio.create_task(opened.acquire())
    await asyncio.sleep(0)
    held[0].terminate()
    opened.release(held[0], whole=True)
    fresh = await waiting
    assert fresh not in held
    assert await backend_of(fresh) > 0
    held[1].terminate()
    opened.release(held[1], whole=True)
    assert opened.size == 1
    opened.release(fresh, whole=True)
    fresh.terminate()
    assert await backend_of(await opened.acquire()) > 0
    assert opened.size == 1


async def test_a_connection_within_a_transaction_is_not_used_again(opened: Connections) -> None:
    connection = await opened.acquire()
    await connection.execute("BEGIN")
    opened.release(connection, whole=True)
    assert opened.idle == 0
    assert connection.is_closed()


async def test_when_no_connection_can_be_opened_everybody_is_told(servers: Servers) -> None:
    async def fail() -> asyncpg.Connection:
        await asyncio.sleep(0.01)
        raise ConnectionRefusedError

    connections = Connections(fail, 2)
    answers = await asyncio.gather(
        *(connections.acquire() for _ in range(6)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [ConnectionRefusedError] * 6
    assert connections.size == 0


async def test_a_statement_that_was_cut_off_is_not_read_by_the_next_one(
    transactions: Database,
) -> None:
    """Neither a cancelled request nor one that timed out leaves its rows to another."""

    async def sleep(started: asyncio.Event) -> None:
        async with transactions._connection() as connection:
            started.set()
            await connection.fetchval("SELECT pg_sleep(0.2)")

    started = asyncio.Event()
    cancelled = asyncio.create_task(sleep(started))
    await started.wait()
    await asyncio.sleep(0.02)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert (transactions.connections["in_use"], transactions.connections["idle"]) == (0, 0)
    with pytest.raises(DatabaseUnavailable):
        async with transactions._connection() as connection:
            await connection.fetchval("SELECT pg_sleep(1)", timeout=0.05)
    assert (transactions.connections["in_use"], transactions.connections["idle"]) == (0, 0)
    async with transactions._connection() as connection:
        assert await connection.fetchval("SELECT 7") == 7


async def test_after_a_server_is_gone_nobody_gets_a_connection_from_before(
    opened: Connections,
) -> None:
    idle, in_use = await opened.acquire(), await opened.acquire()
    opened.release(idle, whole=True)
    opened.expire()
    assert idle.is_closed()
    assert not in_use.is_closed()
    opened.release(in_use, whole=True)
    assert in_use.is_closed()
    assert (opened.size, opened.idle) == (0, 0)
    fresh = await opened.acquire()
    opened.release(fresh, whole=True)
    assert (opened.size, opened.idle) == (1, 1)


async def test_when_too_many_wait_for_too_long_nobody_else_joins_but_who_asks_for_health(
    opened: Connections,
) -> None:
    """What comes at once may wait, however many they are."""
    held = [await opened.acquire(), await opened.acquire()]
    waiting = [asyncio.create_task(opened.acquire()) for _ in range(2 * MOST_WAITING + 5)]
    await asyncio.sleep(BURST_SECONDS + 0.05)
    with pytest.raises(QueueFull):
        await opened.acquire()
    waiting.append(asyncio.create_task(opened.acquire(however_many_wait=True)))
    for connection in held:
        opened.release(connection, whole=True)
    for served in waiting:
        opened.release(await served, whole=True)
    assert opened.idle == 2
