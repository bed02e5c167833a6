"""Connections to PostgreSQL, handed directly to those who wait, in the order in which they came.

asyncpg's own pool gives the last connection back first, to whoever comes by, and makes a task and
a timer each time: at capacity 40 µs more for each request, and five times the p99.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    import asyncpg

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
    Handed: TypeAlias = asyncio.Future[Connection | None]
    Waiting: TypeAlias = tuple[Handed, float]
    """Who waits, and since when."""

WAIT_SECONDS: Final = 1.0
"""How long a request may wait for a connection, or for its opening."""
BURST_SECONDS: Final = 0.1
"""What comes at once may wait; when the first has waited so long, it is more than can be done."""
MOST_WAITING: Final = 20
"""Then so many may wait for each connection: more would be served when they have left."""
CLOSE_SECONDS: Final = 3.0
SILENT_SECONDS: Final = 0.4
"""How long nothing may come back from a server that was asked, before it is asked whether it is
there."""
SIGN_OF_LIFE_SECONDS: Final = 0.4
"""How long it may take to say so, on a connection of its own."""
_NONE_FREE: Final = "No connection came free in time."
_HANGS: Final = "The server does not answer."


class QueueFull(Exception):
    """More wait for a connection than can be served."""


class Connections:
    """At most `limit` connections, opened when they are needed.

    A server that hangs refuses nothing: a statement would wait for it until its time-out, which
    has to be long enough for those that wait for a lock. So when all have been silent for a while,
    it is asked on a new connection, and unless it answers, nobody waits for it until it does.
    """

    def __init__(
        self,
        connect: "Callable[[], Awaitable[Connection]]",
        limit: int,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._connect = connect
        self.wait_seconds = wait_seconds
        self.limit = limit
        self.size = 0
        """Those that are open or being opened."""
        self._idle: deque[Connection] = deque()
        self._in_use: set[Connection] = set()
        self._expired: set[Connection] = set()
        """Those in use that nobody is to get afterwards."""
        self._waiting: deque[Waiting] = deque()
        self._heard_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._hangs = False

    @property
    def idle(self) -> int:
        return len(self._idle)

    async def acquire(self, *, however_many_wait: bool = False) -> "Connection":
        """Return a connection for this caller alone.

        Raises QueueFull, TimeoutError, or why there is none.
        """
        if self._hangs:
            raise TimeoutError(_HANGS)
        until = asyncio.get_running_loop().time() + self.wait_seconds
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                self._use(connection)
                return connection
            self.size -= 1
        if self.size >= self.limit:
            if not however_many_wait:
                self.check_queue()
            handed = await self._wait()
            if handed is not None:
                return handed
        else:
            self.size += 1
        return await self._open(until)

    def release(self, connection: "Connection", *, whole: bool) -> None:
        """Give it to the next one; unless `whole`, it was left amid something, and is of no use."""
        self._in_use.discard(connection)
        whole = whole and connection not in self._expired
        self._expired.discard(connection)
        if not whole or connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
            self._make_room()
            return
        self._heard_at = time.monotonic()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                self._use(connection)
                future.set_result(connection)
                return
        self._idle.append(connection)

    def expire(self) -> None:
        """Let nobody get those that are open now: the server is gone, or writes no more."""
        self._expired |= self._in_use
        while self._idle:
            self._idle.pop().terminate()
            self.size -= 1

    async def close(self) -> None:
        """Close those that nobody uses, and end the others."""
        if self._watch is not None:
            self._watch.cancel()
        if self._asking is not None:
            self._asking.cancel()
        for connection in [*self._in_use]:
            connection.terminate()
        closing = [connection.close(timeout=CLOSE_SECONDS) for connection in self._idle]
        await asyncio.gather(*closing, return_exceptions=True)  # one that is gone is closed too

    def _use(self, connection: "Connection") -> None:
        self._in_use.add(connection)
        if self._watch is None:
            self._heard_at = time.monotonic()
            self._check_in(SILENT_SECONDS)

    def _check_in(self, seconds: float) -> None:
        self._watch = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        """Ask the server whether it is there, if it has been silent for too long."""
        self._watch = None
        if not self._in_use:
            return
        left = self._heard_at + SILENT_SECONDS - time.monotonic()
        if left <= 0 and self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        self._check_in(left if left > 0 else SILENT_SECONDS)

    async def _ask(self) -> None:
        """Have nobody wait for a server that does not answer, until it does."""
        while not await self._answers():
            self._hangs = True
            self._end_all()
            await asyncio.sleep(SIGN_OF_LIFE_SECONDS / 4)

    async def _answers(self) -> bool:
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(SIGN_OF_LIFE_SECONDS):
                connection = await self._connect()
                try:
                    await connection.execute("SELECT 1")
                finally:
                    connection.terminate()
        except OSError:  # TimeoutError is one; but if others were answered, this process is slow
            return self._heard_at > asked_at
        return True

    def _asked(self, asking: "asyncio.Task[None]") -> None:
        self._asking = None
        self._hangs = False
        # Whatever else it says, that it has too many connections, or is starting, is an answer.
        if not asking.cancelled():
            asking.exception()
        self._heard_at = time.monotonic()

    def _end_all(self) -> None:
        """End what is under way: it is answered by nobody."""
        self.expire()
        for connection in self._in_use:
            connection.terminate()
        while self._waiting:
            future, _ = self._waiting.popleft()
            _give_up(future, _HANGS)

    def check_queue(self) -> None:
        """Raise QueueFull if more wait than can be served."""
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        if len(self._waiting) >= MOST_WAITING * self.limit:
            _, since = self._waiting[0]
            if time.monotonic() - since > BURST_SECONDS:
                raise QueueFull

    async def _wait(self) -> "Connection | None":
        """Return the connection that somebody hands on; None where one may be opened instead."""
        loop = asyncio.get_running_loop()
        future: Handed = loop.create_future()
        self._waiting.append((future, time.monotonic()))
        timer = loop.call_later(self.wait_seconds, _give_up, future, _NONE_FREE)
        try:
            return await future
        except asyncio.CancelledError:
            # Cancelled in the same turn in which it was handed one: then it is the next one's.
            if future.done() and not future.cancelled():
                handed = future.result()
                if handed is None:
                    self._make_room()
                else:
                    self.release(handed, whole=True)
            raise
        finally:
            timer.cancel()

    async def _open(self, until: float) -> "Connection":
        try:
            async with asyncio.timeout_at(until):
                connection = await self._connect()
        except BaseException:
            self._make_room()
            raise
        self._use(connection)
        return connection

    def _make_room(self) -> None:
        """Let the next one who waits open a connection in the place of one that is gone."""
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
        self.size -= 1


def _give_up(future: "Handed", reason: str) -> None:
    if not future.done():
        future.set_exception(TimeoutError(reason))
