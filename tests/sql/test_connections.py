"""Connections are passed on in order, and none that may still be busy is used again."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import asyncpg
import pytest
from asyncpg.pool import PoolConnectionProxy

from service.domain.errors import DatabaseUnavailable
from service.postgresql.database import Database
from service.postgresql.pool import BURST_SECONDS, MOST_WAITING, Connections, QueueFull
from tests.conftest import Servers

LIMIT = 2


@pytest.fixture
async def opened(servers: Servers, database: asyncpg.Connection) -> AsyncIterator[Connections]:
    async with Connections(lambda: asyncpg.connect(servers.database_url), LIMIT) as connections:
        yield connections


async def backend_of(connection: PoolConnectionProxy) -> int:
    pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    return pid


def counts(connections: Connections) -> tuple[int, int]:
    counted = connections.counts
    assert counted["limit"] == LIMIT
    return counted["in_use"], counted["idle"]


async def test_connections_are_opened_when_needed_and_used_again(opened: Connections) -> None:
    assert counts(opened) == (0, 0)
    first, second = await opened.acquire(), await opened.acquire()
    backend = await backend_of(first)
    assert backend != await backend_of(second)
    assert counts(opened) == (2, 0)
    opened.release(first, clean=True)
    assert counts(opened) == (1, 1)
    again = await opened.acquire()
    assert await backend_of(again) == backend
    opened.release(again, clean=True)
    opened.release(second, clean=True)
    assert counts(opened) == (0, 2)


async def test_the_longest_waiter_is_first(opened: Connections) -> None:
    held = [await opened.acquire(), await opened.acquire()]
    backends = {await backend_of(connection) for connection in held}
    served: list[int] = []

    async def use(number: int) -> None:
        connection = await opened.acquire()
        served.append(number)
        assert await backend_of(connection) in backends
        opened.release(connection, clean=True)

    tasks = []
    for number in range(20):
        tasks.append(asyncio.create_task(use(number)))
        await asyncio.sleep(0)
    for connection in held:
        opened.release(connection, clean=True)
    await asyncio.gather(*tasks)
    assert served == list(range(20))
    assert counts(opened) == (0, 2)


async def test_a_newcomer_does_not_overtake_a_waiter(opened: Connections) -> None:
    """Nor does one whose turn begins between a release and the waiter's."""
    held = [await opened.acquire(), await opened.acquire()]
    waiting = asyncio.create_task(opened.acquire())
    await asyncio.sleep(0)
    opened.release(held[0], clean=True)
    newcomer = asyncio.create_task(opened.acquire())
    assert await waiting is held[0]
    assert not newcomer.done()
    opened.release(held[1], clean=True)
    assert await newcomer is held[1]


async def test_nobody_waits_for_ever(servers: Servers) -> None:
    connect = lambda: asyncpg.connect(servers.database_url)  # noqa: E731
    async with Connections(connect, LIMIT, wait_seconds=0.2) as opened:
        held = [await opened.acquire(), await opened.acquire()]
        started = time.perf_counter()
        with pytest.raises(TimeoutError, match="No connection came free"):
            await opened.acquire()
        assert time.perf_counter() - started < 1
        for connection in held:
            opened.release(connection, clean=True)
        assert counts(opened) == (0, 2), "a waiter that gave up is passed nothing"


async def test_waiting_and_opening_share_one_limit() -> None:
    opening = 0

    async def fail_late() -> asyncpg.Connection:
        nonlocal opening
        opening += 1
        await asyncio.sleep(0.3 if opening <= LIMIT else 60)
        raise ConnectionRefusedError

    async with Connections(fail_late, LIMIT, wait_seconds=0.4) as opened:
        started = time.perf_counter()
        answers = await asyncio.gather(
            *(opened.acquire() for _ in range(2 * LIMIT)), return_exceptions=True
        )
        told = [ConnectionRefusedError] * LIMIT + [TimeoutError] * LIMIT
        assert [type(answer) for answer in answers] == told
        assert time.perf_counter() - started < 0.6
        assert counts(opened) == (0, 0)


async def test_one_who_is_cancelled_while_passed_a_connection_passes_it_on(
    opened: Connections,
) -> None:
    held = [await opened.acquire(), await opened.acquire()]
    waiting = [asyncio.create_task(opened.acquire()) for _ in range(2)]
    await asyncio.sleep(0)
    opened.release(held[0], clean=True)  # the first one has it now, and has not run yet
    waiting[0].cancel()
    assert await waiting[1] is held[0]
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    waiting = [asyncio.create_task(opened.acquire())]
    await asyncio.sleep(0)
    opened.release(held[0], clean=True)
    waiting[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    assert counts(opened) == (1, 1), "or gives it back"


async def test_one_who_is_cancelled_while_passed_a_place_passes_it_on(opened: Connections) -> None:
    held = [await opened.acquire(), await opened.acquire()]
    waiting = [asyncio.create_task(opened.acquire()) for _ in range(2)]
    await asyncio.sleep(0)
    opened.release(held[0], clean=False)
    waiting[0].cancel()
    assert await backend_of(await waiting[1]) > 0
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    assert counts(opened) == (2, 0)


async def test_a_connection_that_is_gone_makes_room_for_another(opened: Connections) -> None:
    held = [await opened.acquire(), await opened.acquire()]
    waiting = asyncio.create_task(opened.acquire())
    await asyncio.sleep(0)
    held[0].terminate()
    opened.release(held[0], clean=True)
    fresh = await waiting
    assert fresh not in held
    backend = await backend_of(fresh)
    held[1].terminate()
    opened.release(held[1], clean=True)
    assert counts(opened) == (1, 0)
    opened.release(fresh, clean=True)
    await end(opened, backend)
    assert await backend_of(await opened.acquire()) != backend
    assert counts(opened) == (1, 0)


async def end(opened: Connections, backend: int) -> None:
    """Have the server close an idle connection, as seen from another one that is gone, too."""
    idle = await opened.acquire()
    assert await backend_of(idle) == backend
    other = await opened.acquire()
    opened.release(idle, clean=True)
    await other.execute(f"SELECT pg_terminate_backend({backend}, 5000)")
    opened.release(other, clean=False)
    async with asyncio.timeout(5):
        while opened.counts["idle"]:
            await asyncio.sleep(0.01)


async def test_a_connection_within_a_transaction_is_not_used_again(opened: Connections) -> None:
    connection = await opened.acquire()
    await connection.execute("BEGIN")
    opened.release(connection, clean=True)
    assert counts(opened) == (0, 0)


async def test_when_no_connection_can_be_opened_everybody_hears_of_it() -> None:
    async def fail() -> asyncpg.Connection:
        await asyncio.sleep(0.01)
        raise ConnectionRefusedError

    async with Connections(fail, LIMIT) as connections:
        answers = await asyncio.gather(
            *(connections.acquire() for _ in range(6)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [ConnectionRefusedError] * 6
        assert counts(connections) == (0, 0)


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
    before = {await backend_of(idle), await backend_of(in_use)}
    opened.release(idle, clean=True)
    opened.expire()
    assert counts(opened) == (1, 0)
    assert await backend_of(in_use) in before, "what is under way may end"
    waiting = asyncio.create_task(opened.acquire())
    opened.release(in_use, clean=True)
    fresh = await waiting
    assert await backend_of(fresh) not in before
    opened.release(fresh, clean=True)
    assert counts(opened) == (0, 1)


async def test_a_server_that_hangs_is_given_up_and_used_again_when_it_answers(
    servers: Servers,
) -> None:
    hangs = False

    async def connect() -> asyncpg.Connection:
        if hangs:
            await asyncio.sleep(60)
        return await asyncpg.connect(servers.database_url)

    async with Connections(connect, LIMIT, wait_seconds=5) as connections:

        async def ask(connection: PoolConnectionProxy) -> None:
            try:
                await connection.execute("SELECT pg_sleep(5)")
            finally:
                connections.release(connection, clean=False)

        held = [await connections.acquire() for _ in range(LIMIT)]
        hangs = True
        started = time.perf_counter()
        waiting = [connections.acquire() for _ in range(50)]
        answers = await asyncio.gather(*map(ask, held), *waiting, return_exceptions=True)
        assert all(isinstance(answer, Exception) for answer in answers)
        assert 0.7 < time.perf_counter() - started < 2
        started = time.perf_counter()
        with pytest.raises(TimeoutError, match="does not answer"):
            await connections.acquire()
        assert time.perf_counter() - started < 0.5
        hangs = False
        async with asyncio.timeout(2):
            while not counts(connections)[0]:
                with suppress(TimeoutError):
                    await connections.acquire()
                await asyncio.sleep(0.01)


async def test_a_slow_statement_is_left_alone_while_the_server_answers_others(
    opened: Connections,
) -> None:
    connection = await opened.acquire()
    assert await connection.fetchval("SELECT 7 FROM pg_sleep(1.2)") == 7
    opened.release(connection, clean=True)
    assert counts(opened) == (0, 1)


async def test_when_too_many_wait_for_too_long_only_health_checks_may_join(
    opened: Connections,
) -> None:
    """A burst may wait, however large."""
    held = [await opened.acquire(), await opened.acquire()]
    waiting = [asyncio.create_task(opened.acquire()) for _ in range(LIMIT * MOST_WAITING + 5)]
    await asyncio.sleep(BURST_SECONDS + 0.05)
    with pytest.raises(QueueFull):
        await opened.acquire()
    waiting.append(asyncio.create_task(opened.acquire(skip_check=True)))
    for connection in held:
        opened.release(connection, clean=True)
    for served in waiting:
        opened.release(await served, clean=True)
    assert counts(opened) == (0, 2)
