"""What may go wrong: each fault strikes for a while, and is over when its coroutine ends."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

import asyncpg
from redis.asyncio import Redis

from tests.engines.killable import Engine, Way, children_of
from tests.faults.history import History, Window

STALE_SECONDS: Final = 2.0
"""The promise: how long an old code may be given after Redis is back or a process was killed."""
JUST_BEFORE: Final = 1.0
"""Seconds that a write may have been under way when its process, or PostgreSQL, was killed.

Nothing is promised of it, because it was not answered; but others may have seen its effect.
"""


@dataclass
class World:
    """What a fault can reach."""

    rng: random.Random
    history: History
    postgresql: Engine
    valkey: Engine
    to_postgresql: Way
    to_valkey: Way
    service: int
    """The service's first process, the parent of its workers."""
    database_url: str
    folder: Path
    seconds: float
    """How long the fault may last."""

    def may_be_stale(self, *, since: float, begin: float | None = None) -> None:
        """Allow the staleness that the design does, from `begin` (default: now) for 2 s."""
        begin = monotonic() if begin is None else begin
        self.history.windows.append(Window(begin, monotonic() + STALE_SECONDS, since))

    @property
    def a_worker(self) -> int:
        return self.rng.choice(children_of(self.service))

    def seconds_until_next(self) -> float:
        return self.rng.uniform(0.4, 1.6)


Fault = Callable[[World], Awaitable[None]]


async def nothing(world: World) -> None:
    """The service on an ordinary day."""
    await asyncio.sleep(world.seconds)


async def slow_ways(world: World) -> None:
    """Everything is delayed, and much is under way at once."""
    world.to_postgresql.delay = 0.004
    world.to_valkey.delay = 0.02
    await asyncio.sleep(world.seconds)
    world.to_postgresql.delay = world.to_valkey.delay = 0.0


async def workers_killed(world: World) -> None:
    """SIGKILL of a worker, again and again."""
    world.to_valkey.delay = 0.02  # some then die between the commit and the cache
    for _ in _repeatedly(world):
        os.kill(world.a_worker, signal.SIGKILL)
        world.may_be_stale(since=monotonic() - JUST_BEFORE)
        await asyncio.sleep(world.seconds_until_next())
    world.to_valkey.delay = 0.0


async def workers_suspended(world: World) -> None:
    """SIGSTOP of a worker for a while: it hangs with its locks, its leases, its connections."""
    for _ in _repeatedly(world):
        worker, begun = world.a_worker, monotonic()
        os.kill(worker, signal.SIGSTOP)
        await asyncio.sleep(world.rng.uniform(0.5, 4.5))
        os.kill(worker, signal.SIGCONT)
        world.may_be_stale(begin=begun, since=begun - JUST_BEFORE)
        await asyncio.sleep(world.seconds_until_next())


async def valkey_killed(world: World) -> None:
    """SIGKILL of Valkey; it comes back empty."""
    for _ in _repeatedly(world):
        killed = monotonic()
        await world.valkey.kill()
        await asyncio.sleep(world.seconds_until_next())
        back = monotonic()  # clients may reach it before this process has noticed
        await world.valkey.start()
        world.may_be_stale(begin=back, since=killed)
        await asyncio.sleep(world.seconds_until_next())


async def valkey_suspended(world: World) -> None:
    """SIGSTOP of Valkey: silence instead of refusals; then it goes on with what it had."""
    for _ in _repeatedly(world):
        suspended = monotonic()
        world.valkey.suspend()
        await asyncio.sleep(world.rng.uniform(0.3, 2.5))
        world.valkey.resume()
        world.may_be_stale(since=suspended)
        await asyncio.sleep(world.seconds_until_next())


async def valkey_with_old_data(world: World) -> None:
    """Valkey saves its keys, goes on, is killed, and comes back with what it had saved."""
    for _ in _repeatedly(world):
        async with Redis.from_url(world.valkey.url) as redis:
            await redis.save()
        await asyncio.sleep(world.seconds_until_next())
        killed = monotonic()
        await world.valkey.kill()
        back = monotonic()  # clients may reach it before this process has noticed
        await world.valkey.start()
        world.may_be_stale(begin=back, since=killed)
        await asyncio.sleep(STALE_SECONDS + world.seconds_until_next())


async def way_to_valkey_broken(world: World) -> None:
    """Connections to Valkey are cut in the middle of a word, or nothing comes through them."""
    for _ in _repeatedly(world):
        broken = monotonic()
        if world.rng.random() < 0.5:
            world.to_valkey.cut()
        else:
            world.to_valkey.hold_up()
        await asyncio.sleep(world.rng.choice([0.0, 0.3, 1.5]))
        world.to_valkey.mend()
        world.may_be_stale(begin=broken, since=broken)
        await asyncio.sleep(world.seconds_until_next())


async def postgresql_killed(world: World) -> None:
    """SIGKILL of PostgreSQL with all its processes; it recovers from its log."""
    for _ in _repeatedly(world):
        killed = monotonic()
        await world.postgresql.kill()
        await asyncio.sleep(world.rng.uniform(0, 1))
        await world.postgresql.start()
        world.may_be_stale(begin=killed, since=killed - JUST_BEFORE)
        await asyncio.sleep(1 + world.seconds_until_next())


async def postgresql_suspended(world: World) -> None:
    """SIGSTOP of PostgreSQL: connections stay open and silent."""
    for _ in _repeatedly(world):
        suspended = monotonic()
        world.postgresql.suspend()
        await asyncio.sleep(world.rng.uniform(0.5, 4.0))
        world.postgresql.resume()
        world.may_be_stale(begin=suspended, since=suspended - JUST_BEFORE)
        await asyncio.sleep(world.seconds_until_next())


async def commits_unanswered(world: World) -> None:
    """The connection ends instead of answering a COMMIT: was it committed or not?"""
    world.to_postgresql.cut_at, world.to_postgresql.cut_in = b"COMMIT\0", 0.15
    begun = monotonic()
    for _ in _repeatedly(world):
        await asyncio.sleep(0.1)
    world.to_postgresql.cut_in = 0.0
    slices = int((monotonic() + STALE_SECONDS - begun) * 10)
    for slice_begun in (begun + tenth / 10 for tenth in range(slices)):
        window = Window(slice_begun, slice_begun + 0.1, slice_begun - STALE_SECONDS)
        world.history.windows.append(window)


async def way_to_postgresql_broken(world: World) -> None:
    """Connections to PostgreSQL are cut in the middle of a statement, or fall silent."""
    for _ in _repeatedly(world):
        broken = monotonic()
        if world.rng.random() < 0.5:
            world.to_postgresql.cut()
        else:
            world.to_postgresql.hold_up()
        await asyncio.sleep(world.rng.choice([0.0, 0.3, 1.5]))
        world.to_postgresql.mend()
        world.may_be_stale(begin=broken, since=broken - JUST_BEFORE)
        await asyncio.sleep(world.seconds_until_next())


async def backends_terminated(world: World) -> None:
    """pg_terminate_backend and pg_cancel_backend, here and there."""
    connection = await asyncpg.connect(world.database_url)
    for _ in _repeatedly(world):
        call = world.rng.choice(["pg_terminate_backend", "pg_cancel_backend"])
        await connection.execute(
            f"SELECT {call}(pid) FROM pg_stat_activity"
            " WHERE application_name = 'referrals' AND random() < 0.3"
        )
        world.may_be_stale(since=monotonic() - JUST_BEFORE)
        await asyncio.sleep(0.1)
    await connection.close()


async def pool_exhausted(world: World) -> None:
    """A lock held elsewhere keeps every connection of the pool waiting."""
    connection = await asyncpg.connect(world.database_url)
    for _ in _repeatedly(world):
        async with connection.transaction():
            await connection.execute("LOCK TABLE referral_codes IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(world.rng.uniform(0.5, 2.5))
        await asyncio.sleep(world.seconds_until_next())
    await connection.close()


async def disk_full(world: World) -> None:
    """PostgreSQL's disk is full for a while."""
    filler = world.folder / "filler"
    for _ in _repeatedly(world):
        full = monotonic()
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        await asyncio.sleep(2)
        filler.unlink()
        # It ends by itself when its log has no room; an operator would restart it.
        await world.postgresql.restart()
        world.may_be_stale(begin=full, since=full - JUST_BEFORE)
        await asyncio.sleep(1 + world.seconds_until_next())


async def clocks_stepped(world: World) -> None:
    """The clocks of two machines jump back and forth by up to an hour, independently."""
    for _ in _repeatedly(world):
        clock = world.rng.choice(sorted(world.folder.glob("clock-*")))
        clock.write_text(f"{world.rng.uniform(-3600, 3600):+.1f}")
        await asyncio.sleep(world.seconds_until_next())


async def one_after_the_other(world: World) -> None:
    """One random fault after another."""
    short = [
        workers_killed,
        workers_suspended,
        valkey_killed,
        valkey_suspended,
        postgresql_killed,
        postgresql_suspended,
        backends_terminated,
    ]
    seconds, world.seconds = world.seconds, 0.5
    end = monotonic() + 2 * seconds
    while monotonic() < end:
        await world.rng.choice(short)(world)
        await asyncio.sleep(STALE_SECONDS)


def _repeatedly(world: World) -> Iterator[None]:
    """Yield at least once, and then until the time is up."""
    end = monotonic() + world.seconds
    yield
    while monotonic() < end:
        yield
