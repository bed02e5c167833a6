"""Redis through redis-py: what a turn of the event loop, or a few, asks for travels together.

A call of its own for each request would cost more than aiohttp needs to answer it. One MGET and
one script for the 64 requests of a busy turn cost each of them next to nothing.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any, Final

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from service.redis import TIMEOUT_SECONDS, RedisAway
from service.redis.topology import Topology
from service.telemetry.metrics import CIRCUIT_BREAKER_OPEN

LAST_CHANCE_SECONDS: Final = 0.01
MOST_UNDER_WAY: Final = 10_000
"""Requests that may wait for replies; more are refused, which bounds the memory they take."""
MANY_AT_ONCE: Final = 8
"""Requests in a batch that is worth holding back for a few turns of the loop while others join it:
an exchange alone costs as much as ten of them. Fewer leave at once."""
MOST_TURNS: Final = 16
"""How many turns such a batch is held back at most."""
PROBE_SECONDS: Final = 0.3
"""The interval between questions to the sentinels."""
_REFUSED: Final = (AuthenticationError, ResponseError)
"""A wrong user, password or database."""
Argument = str | bytes | int
_pack: Final[Callable[..., list[bytes]]] = HiredisRespSerializer().pack
"""A connection's own `pack_command` takes four times as long for an MGET of 64 keys."""
Reply = asyncio.Future[Any]
_Counted = tuple[int, int]

_COUNT: Final = """
local replies = {}
local next_argument = string.gmatch(ARGV[1], '%d+')
for at, key in ipairs(KEYS) do
    local left = redis.call('PTTL', key)
    replies[2 * at - 1] = redis.call('INCRBY', key, next_argument())
    local milliseconds = tonumber(next_argument())
    if left < 0 then
        left = milliseconds
        redis.call('PEXPIRE', key, left)
    end
    replies[2 * at] = left
end
return replies
"""


@dataclass(slots=True, eq=False)
class _Batch:
    """What one exchange asks for, and the futures that wait for its replies."""

    generation: str = ""
    """The only one of the server that may be asked; any, if empty."""
    size: int = 0
    reads: list[tuple[str, Reply]] = field(default_factory=list)
    counts: dict[tuple[str, int], list[Reply]] = field(default_factory=partial(defaultdict, list))
    calls: list[tuple[tuple[Argument, ...], Reply]] = field(default_factory=list)

    def commands(self) -> list[tuple[Argument, ...]]:
        commands: list[tuple[Argument, ...]] = []
        if self.reads:
            commands.append(("MGET", *[key for key, _ in self.reads]))
        if self.counts:
            keys = [key for key, _ in self.counts]
            # In one argument, because packing takes its time for each.
            numbers = [f"{len(each)} {window}" for (_, window), each in self.counts.items()]
            commands.append(("EVAL", _COUNT, len(keys), *keys, " ".join(numbers)))
        commands += [command for command, _ in self.calls]
        return commands

    def resolve(self, replies: list[Any]) -> None:
        remaining = iter(replies)
        if self.reads:
            for value, (_, future) in zip(next(remaining), self.reads, strict=True):
                if not future.done():  # the caller may have been cancelled
                    future.set_result(value)
        if self.counts:
            self._resolve_counts(next(remaining))
        for reply, (_, future) in zip(remaining, self.calls, strict=True):
            if not future.done():
                future.set_result(reply)

    def _resolve_counts(self, replies: list[int]) -> None:
        each = iter(replies)
        for count, left, futures in zip(each, each, self.counts.values(), strict=True):
            for number, future in enumerate(futures, count - len(futures) + 1):
                if not future.done():
                    future.set_result((number, left))

    def fail(self, error: RedisAway) -> None:
        alone = [future for _, future in (*self.reads, *self.calls)]
        for future in chain(alone, *self.counts.values()):
            if not future.done():
                future.set_exception(RedisAway(*error.args))
                future.exception()  # counts as retrieved, should nobody wait for it


@dataclass(slots=True)
class _Lane:
    """Has one exchange under way at a time; what is asked for meanwhile goes into the next one."""

    batch: _Batch = field(default_factory=_Batch)
    task: asyncio.Task[None] | None = None
    asked: asyncio.Future[None] | None = None
    """What the task waits for while nothing is asked for."""


class RedisClient:
    """The server that REDIS_URL names, behind a circuit breaker.

    The breaker starts open: `resume` closes it, and the first failure opens it again. A connection
    that was lost while idle is no failure; it is made again.
    """

    def __init__(self, url: str) -> None:
        self._topology = Topology(url)
        self._connection: AbstractConnection | None = None
        self._sending = asyncio.Lock()
        self._receiving = asyncio.Lock()
        """Acquired right after sending, and first come, first served: replies keep their order."""
        self._reads = _Lane()
        """Counts included."""
        self._calls = _Lane()
        """Apart: a write does not wait until the reads under way are answered."""
        self._unanswered: set[_Batch] = set()
        self._limits: dict[asyncio.Timeout, float] = {}
        """Those of the exchanges under way, oldest first, and when each is overdue."""
        self._timer: asyncio.TimerHandle | None = None
        """One for all of them: a timer of its own would cost each exchange as much as sending."""
        self._waiting = 0
        self._probing = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self.away = True
        self.answers = False
        """Whether Redis did when last asked, even if the breaker is still open."""
        CIRCUIT_BREAKER_OPEN.set(1)

    @property
    def generation(self) -> str:
        """A prefix for keys that must not be seen again after a restart or a failover."""
        return self._topology.generation

    def get(self, key: str) -> "asyncio.Future[bytes | None]":
        """Return the value of a key.

        Raises RedisAway at once, or in the future: so do the other requests.
        """
        lane = self._reads
        future = self._ask(lane, self.away)
        lane.batch.reads.append((key, future))
        return future

    def count(self, key: str, milliseconds: int) -> "asyncio.Future[_Counted]":
        """Count one request in a window that starts with the first.

        Returns how many there are, this one included, and the milliseconds until the window ends.
        """
        lane = self._reads
        future = self._ask(lane, self.away)
        lane.batch.counts[key, milliseconds].append(future)
        return future

    def call(self, *command: Argument) -> Reply:
        """Return the reply to any other command."""
        return self._call(command, self.away)

    def delete(self, *keys: str) -> Reply:
        """Delete keys, even while the breaker is open, provided that Redis answers.

        This process may not trust what it would read there yet; others may be reading it.
        """
        return self._call(("DEL", *keys), not self.answers)

    async def probe(self) -> None:
        """Find the primary and check that it answers, whatever the breaker says.

        Raises RedisAway, and then the breaker is open.
        """
        async with self._probing:
            asked_at, known = monotonic(), self.generation
            batch = _Batch()
            batch.calls.append((("INFO",), reply := asyncio.get_running_loop().create_future()))
            try:
                if await self._topology.find_primary():
                    await self._disconnect()
                await self._exchange(batch)
                self._topology.learn(await reply)
            except RedisAway:
                self._open_breaker()
                raise
            self._topology.believe_since(asked_at)
            if self.generation != known:
                self._open_breaker()
            self.answers = True

    def resume(self) -> None:
        """Close the breaker, unless Redis is silent or its primary was replaced a moment ago."""
        if not self.answers or not self._topology.is_settled:
            return
        self.away = False
        CIRCUIT_BREAKER_OPEN.set(0)
        if self._topology.is_watched and self._watch is None:
            self._watch = asyncio.create_task(self._keep_probing())

    async def close(self) -> None:
        self._open_breaker()
        tasks = [each for each in (self._watch, self._reads.task, self._calls.task) if each]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._timer is not None:
            self._timer.cancel()
        for lane in (self._reads, self._calls):
            lane.batch.fail(RedisAway("The connection to Redis was closed."))
        await self._disconnect()
        await self._topology.close()

    async def _keep_probing(self) -> None:
        """Go on until the breaker opens."""
        try:
            while not self.away:
                await asyncio.sleep(PROBE_SECONDS)
                with suppress(RedisAway):
                    await self.probe()
        finally:
            self._watch = None

    def _call(self, command: tuple[Argument, ...], refused: bool) -> Reply:
        future = self._ask(self._calls, refused)
        self._calls.batch.calls.append((command, future))
        return future

    def _ask(self, lane: _Lane, refused: bool) -> Reply:
        """Return the future of one more reply in the lane's next exchange."""
        if refused:
            raise RedisAway
        if self._waiting >= MOST_UNDER_WAY:
            raise RedisAway("Too many requests are waiting for Redis.")
        batch = lane.batch
        if not batch.size:
            if not self._topology.is_believed:  # nor is it used if this ends before the exchange
                raise RedisAway
            batch.generation = self.generation
        self._waiting += 1
        if lane.task is None:
            lane.task = asyncio.create_task(self._run(lane))
        elif lane.asked is not None:
            lane.asked.set_result(None)
            lane.asked = None
        batch.size += 1
        # asyncio.get_running_loop() would ask the system for the process id each time.
        return lane.task.get_loop().create_future()

    async def _run(self, lane: _Lane) -> None:
        """Make one exchange after another, for ever."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not lane.batch.size:
                    lane.asked = loop.create_future()
                    await lane.asked
                await _hold_back(lane)
                batch, lane.batch = lane.batch, _Batch()
                try:
                    await self._exchange(batch)
                except RedisAway as error:
                    batch.fail(error)
                except BaseException:
                    batch.fail(RedisAway("The exchange broke off."))
                    raise
                finally:
                    self._waiting -= batch.size
        finally:
            lane.task = lane.asked = None

    async def _exchange(self, batch: _Batch) -> None:
        """Send the batch and resolve its futures.

        Raises RedisAway, and then the breaker is open.
        """
        if batch.generation and not (self.answers and self._topology.is_believed):
            raise RedisAway
        connection: AbstractConnection | None = None
        try:
            async with asyncio.timeout(None) as limit:
                self._limits[limit] = monotonic() + TIMEOUT_SECONDS
                if self._timer is None:
                    self._watch_limits(TIMEOUT_SECONDS)
                try:
                    commands = batch.commands()
                    async with self._sending:
                        connection = await self._connected()
                        if batch.generation not in ("", self.generation):
                            raise RedisAway("Redis was restarted.")
                        self._unanswered.add(batch)
                        packed = [each for command in commands for each in _pack(*command)]
                        await connection.send_packed_command(packed, check_health=False)
                    async with self._receiving:
                        batch.resolve([await connection.read_response() for _ in commands])
                finally:
                    del self._limits[limit]
                    self._unanswered.discard(batch)
        except BaseException as error:
            # Even if it was only cancelled: the next batch would get the replies to this one.
            if connection in (None, self._connection):
                self._open_breaker()
                await self._disconnect()
            if isinstance(error, RedisError | OSError):
                reason = str(error) or "no answer in time"
                raise RedisAway(f"{type(error).__name__}: {reason}") from error
            raise

    def _watch_limits(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end_overdue)

    def _end_overdue(self) -> None:
        """Give overdue exchanges a last chance, and look again when the next one is overdue."""
        self._timer = None
        now = monotonic()
        for limit, overdue_at in self._limits.items():
            if overdue_at > now:
                self._watch_limits(overdue_at - now)
                break
            if limit.when() is None:
                # If it was this process that was held up, replies may have arrived unread.
                limit.reschedule(asyncio.get_running_loop().time() + LAST_CHANCE_SECONDS)

    async def _connected(self) -> AbstractConnection:
        """Return the connection; make it if there is none, or if it was lost while idle."""
        connection = self._connection
        if connection is not None and not self._unanswered and await connection.can_read():
            await self._disconnect()
        if self._connection is None:
            self._connection = ConnectionPool.from_url(
                self._topology.url,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                redis_connect_func=self._greet,
                socket_timeout=None,
                socket_connect_timeout=None,
            ).make_connection()  # type: ignore[no-untyped-call]
            try:
                await self._connection.connect()
            except RedisError as error:
                if isinstance(error.__cause__ or error, _REFUSED):
                    raise RedisAway(f"{error}; correct REDIS_URL") from error
                raise
        return self._connection

    async def _greet(self, connection: AbstractConnection) -> None:
        """Sign in, and learn which server it is."""
        await connection.on_connect()
        await connection.send_command("INFO", check_health=False)
        self._topology.learn(await connection.read_response())

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    def _open_breaker(self) -> None:
        self.away = True
        self.answers = False
        CIRCUIT_BREAKER_OPEN.set(1)


async def _hold_back(lane: _Lane) -> None:
    """Return once the loop's turns no longer add to the lane's next exchange."""
    for _ in range(MOST_TURNS):
        size = lane.batch.size
        if size < MANY_AT_ONCE:
            return
        await asyncio.sleep(0)
        if lane.batch.size == size:
            return
