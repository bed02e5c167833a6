"""asyncpg's pool behind a fair queue.

The pool gives a connection that comes back to whoever asks next, however long others have waited,
and starts a task for each release, which costs more than a statement. So it only opens connections
and closes them: one that comes back goes straight to the longest waiter, or is kept for the next.

Sessions are not reset between uses, which saves a round trip: no statement leaves anything in its
session (tests/sql/test_statements.py), and a connection left within a transaction is discarded.
"""

import asyncio
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import asyncpg

from service.postgresql.watch import Watch

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    from service.postgresql.watch import Connect

    Connection: TypeAlias = PoolConnectionProxy[asyncpg.Record]

WAIT_SECONDS: Final = 1.0
"""How long a request may wait for a connection, opening it included."""
BURST_SECONDS: Final = 0.1
"""A burst may wait; once the first has waited this long, it is more load than can be served."""
MOST_WAITING: Final = 20
"""Waiters per connection from then on: more would be served when their clients have left."""


class QueueFull(Exception):
    """More wait for a connection than can be served."""


class Connections:
    """At most `limit` connections, opened when needed, gone with the `async with` block."""

    def __init__(self, connect: "Connect", limit: int, wait_seconds: float = WAIT_SECONDS) -> None:
        async def open_one(*_: object, **__: object) -> "asyncpg.Connection[asyncpg.Record]":
            return await connect()

        self._pool = asyncpg.create_pool(min_size=0, max_size=limit, connect=open_one)
        self._watch = Watch(connect, lambda: bool(self._in_use), self._abandon)
        self._limit = limit
        self._wait_seconds = wait_seconds
        self._free = limit
        """Places that nobody holds; a place is the right to one of the connections."""
        self._idle: list[Connection] = []
        """Open ones for the free places."""
        self._waiting: deque[tuple[asyncio.Future[Connection | None], float]] = deque()
        """Futures for a connection, or for a place without one, and since when they wait."""
        self._in_use: dict[Connection, bool] = {}
        """Whether each may be used again."""

    async def __aenter__(self) -> Self:
        await self._pool
        self._watching = asyncio.create_task(self._watch.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        self._pool.terminate()

    @property
    def counts(self) -> dict[str, int]:
        """How many are in use or being opened, idle, and allowed."""
        idle = sum(map(_is_usable, self._idle))
        return {"in_use": self._limit - self._free, "idle": idle, "limit": self._limit}

    async def acquire(self, *, skip_check: bool = False) -> "Connection":
        """Return a connection for this caller alone; the longest waiter gets the next one.

        Raises QueueFull (unless `skip_check`), TimeoutError, or what `connect` raises.
        """
        until = asyncio.get_running_loop().time() + self._wait_seconds
        if self._free:
            self._free -= 1
        else:
            if not skip_check:
                self.check_queue()
            if (connection := await self._next(until)) is not None:
                return connection
        return await self._take(until)

    def release(self, connection: "Connection", *, clean: bool) -> None:
        """Pass the connection on; if not `clean`, discard it: a statement may still be running."""
        if not (clean and self._in_use[connection] and _is_usable(connection)):
            _terminate(connection)
            del self._in_use[connection]
            self._leave()
            return
        self._watch.heard()
        if not self._pass_on(connection):
            del self._in_use[connection]
            self._idle.append(connection)
            self._free += 1

    def expire(self) -> None:
        """Let nobody get a connection that is open now: its server is gone, or is a standby."""
        self._in_use = dict.fromkeys(self._in_use, False)
        while self._idle:
            _terminate(self._idle.pop())

    def check_queue(self) -> None:
        """Raise QueueFull if more wait than can be served."""
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        if len(self._waiting) >= MOST_WAITING * self._limit:
            _, since = self._waiting[0]
            if time.monotonic() - since > BURST_SECONDS:
                raise QueueFull

    async def _next(self, until: float) -> "Connection | None":
        """Return a connection that is passed on, or None with a place alone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Connection | None] = loop.create_future()
        self._waiting.append((future, time.monotonic()))
        timer = loop.call_at(until, _give_up, future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                # It was passed on in the very turn of the cancellation.
                if (connection := future.result()) is None:
                    self._leave()
                else:
                    self.release(connection, clean=True)
            raise
        finally:
            timer.cancel()

    async def _take(self, until: float) -> "Connection":
        """Return an idle connection or a new one, for the place that the caller holds."""
        try:
            self._watch.check()
            connection = self._take_idle()
            if connection is None:
                async with asyncio.timeout_at(until):
                    connection = await self._pool.acquire()
        except BaseException:
            self._leave()
            raise
        if not self._in_use:
            self._watch.heard()
        self._in_use[connection] = True
        return connection

    def _take_idle(self) -> "Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if _is_usable(connection):
                return connection
            _terminate(connection)  # the server has closed it
        return None

    def _leave(self) -> None:
        """Give up a place."""
        if not self._pass_on(None):
            self._free += 1

    def _pass_on(self, connection: "Connection | None") -> bool:
        """Give a place, and its connection if it has one, to the longest waiter, if any."""
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(connection)
                return True
        return False

    def _abandon(self) -> None:
        """Fail what is under way; each then passes on its place, and who gets it fails, too."""
        self.expire()
        for connection in self._in_use:
            _terminate(connection)


def _give_up(future: "asyncio.Future[Connection | None]") -> None:
    if not future.done():
        future.set_exception(TimeoutError("No connection came free in time."))


def _is_usable(connection: "Connection") -> bool:
    try:
        return not (connection.is_closed() or connection.is_in_transaction())
    except asyncpg.InterfaceError:  # terminated, which released it
        return False


def _terminate(connection: "Connection") -> None:
    with suppress(asyncpg.InterfaceError):  # terminated before
        connection.terminate()
