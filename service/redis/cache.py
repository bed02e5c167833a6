"""The cache in Redis: what was read from PostgreSQL, kept until it expires or changes.

Redis is never needed: what it cannot answer, the caller reads from PostgreSQL. What it answers
is never older than the promise in three parts:

1. Once the answer to a write is sent, no look-up gives the old value. The writer removes it
   after the commit and before the answer. A reader that missed earlier, and still holds what it
   read, cannot put it back: filling needs the lease that the reader took when it missed, and the
   removal removes the lease as well.
2. While Redis is away every answer comes from PostgreSQL. The first failure opens a circuit
   breaker, and after that no request waits for Redis.
3. When Redis is back, or a process was killed between its commit and the removal, an old value
   lives 2 s at most: the removal is also a job, written in the transaction of the write
   (use_cases/cache_invalidation.py), and a process trusts Redis again only when no job is left.
   Values that a restarted Redis has read from an old file are never seen, because the keys begin
   with the id of the server's run.

Where one server can take the place of another, of a cluster or watched by sentinels, each begins
with an empty cache: what it has as a replica has another server's generation in its names, so
that a removal which was never replicated is not missed. And no two servers are used for one key
at a time. A process asks every ASK_SECONDS who holds what (topology.py) and believes it for
BELIEF_SECONDS, so that it stops using a server which was cut off and does not know that it was
replaced; whoever hears of a new one uses it only after SETTLING_SECONDS. That needs no setting of
the servers; theirs decide how long answers come from PostgreSQL until one is replaced.
"""

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Final

from redis.crc import key_slot

from service.domain.clock import Clock
from service.redis.connection import TIMEOUT_SECONDS, Command, RedisAway, RedisConnection
from service.redis.topology import SlotRange, servers_of
from service.telemetry.metrics import CACHE_READS, CIRCUIT_BREAKER_OPEN

FORM: Final = b"2"
"""Another one for each change of what is kept: while an upgrade replaces the processes one by one,
those before and after it share the cache, and what the others keep is as good as nothing."""
LEASE_FOR: Final = timedelta(seconds=3)
"""Longer than a read from PostgreSQL may take; a reader that died holds up no fill for longer."""
NOTHING_FOR: Final = timedelta(seconds=30)
"""How long "there is nothing" is kept: strangers ask for e-mails without end."""
REMOVED_AT_ONCE: Final = 1000
"""Keys in one call, which Redis answers in a few ms, so that other calls get their turn."""
ASK_SECONDS: Final = 0.3
BELIEF_SECONDS: Final = 1.0
"""Counted from the question. Below promise 3: the job may have been done at the new server."""
SETTLING_SECONDS: Final = BELIEF_SECONDS + 2 * TIMEOUT_SECONDS
"""Counted from the answer. Longer than whoever believes the opposite still may, and then waits for
its last reply."""

_FILL: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
    redis.call('DEL', KEYS[2])
end
"""


class RedisServer:
    """What REDIS_URL names, with a circuit breaker: one for all servers, if there are several.

    The breaker begins open: `resume` closes it, and the first failure opens it again. A
    connection that was lost while nobody used it is no failure, and is made again.
    """

    def __init__(self, url: str) -> None:
        self._servers = servers_of(url, self._open_breaker)
        self._shares: Sequence[SlotRange] = ()
        self._holders: list[RedisConnection] = []
        """By slot; or the one who holds them all."""
        self._only: RedisConnection | None = None
        """The one whose place no other can take: each request asks for it, so at no cost."""
        self._believed_until = -math.inf
        self._settled_at = -math.inf
        self._asking: asyncio.Task[None] | None = None
        self._asking_again: asyncio.Task[None] | None = None
        self.away = True
        self.answers = False
        """Whether it did when it was last asked, also while the breaker is open."""
        CIRCUIT_BREAKER_OPEN.set(1)

    def connection_of(self, name: str) -> RedisConnection | None:
        """The connection to who holds a key of Redis, if it can be used without waiting."""
        if self.away:
            return None
        only = self._only
        return self._holder(name) if only is None or only.is_closed else only

    async def connect(self, name: str) -> RedisConnection:
        """Return the connection to who holds a key; raise RedisAway while the breaker is open."""
        connection = self.connection_of(name)
        if connection is None and not self.away:
            connection = await self.connect_anyway(name)
        if connection is None or self.away:
            raise RedisAway
        return connection

    async def connect_to_tell(self, name: str) -> RedisConnection:
        """Like `connect`, but also while the breaker is open, if who holds the key is there.

        This process may not trust what it would read there yet; others may read it.
        """
        return self._holder(name) or await self.connect(name)

    async def connect_anyway(self, name: str) -> RedisConnection:
        """Like `connect`, whatever the breaker says."""
        connection = self._holder(name)
        if connection is None:
            await self.ask()
            connection = self._holder(name)
        if connection is None:
            raise RedisAway("The connection was lost again.")
        return connection

    def connections(self) -> set[RedisConnection]:
        """Return the connections to all primaries; raise RedisAway while the breaker is open."""
        if self.away:
            raise RedisAway
        return {share.connection for share in self._shares}

    async def ask(self) -> None:
        """Ask who holds what, and for a sign of life, whatever the breaker says.

        Raises RedisAway, and then the breaker is open.
        """
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(lambda task: task.exception())  # or asyncio complains
        # Shielded, because others wait for it too.
        await asyncio.shield(self._asking)

    def resume(self) -> None:
        """Close the breaker, unless it is not long enough yet that a server holds what it does."""
        if monotonic() < self._settled_at:
            return
        self.away = False
        CIRCUIT_BREAKER_OPEN.set(0)
        if self._servers.several and self._asking_again is None:
            self._asking_again = asyncio.create_task(self._ask_again())

    async def close(self) -> None:
        if self._asking_again is not None:
            self._asking_again.cancel()
        tasks = [task for task in (self._asking_again, self._asking) if task is not None]
        if tasks:
            await asyncio.wait(tasks)
        self._servers.close()

    def _holder(self, name: str) -> RedisConnection | None:
        if monotonic() >= self._believed_until:
            return None
        holders = self._holders
        holder = holders[0] if len(holders) == 1 else holders[key_slot(name.encode())]
        return None if holder.is_closed else holder

    async def _ask(self) -> None:
        asked_at = monotonic()
        try:
            async with asyncio.timeout(2 * TIMEOUT_SECONDS):
                shares = await self._servers.look()
        except TimeoutError as error:
            self._open_breaker()
            raise RedisAway("Not all servers answered in time.") from error
        except RedisAway:
            self._open_breaker()
            raise
        finally:
            self._asking = None
        if not self._servers.several:
            self._believed_until = math.inf
        else:
            self._believed_until = asked_at + BELIEF_SECONDS
            if _what_is_held(shares) != _what_is_held(self._shares):
                self._open_breaker()
                self._settled_at = monotonic() + SETTLING_SECONDS
        self.answers = True
        if shares != self._shares:
            self._shares = shares
            self._holders = _by_slot(shares)
            self._only = None if self._servers.several else shares[0].connection
            for share in shares:
                share.connection.generation = share.generation

    async def _ask_again(self) -> None:
        """Go on asking until the breaker opens."""
        try:
            while not self.away:
                await asyncio.sleep(ASK_SECONDS)
                with suppress(RedisAway):
                    await self.ask()
        finally:
            self._asking_again = None

    def _open_breaker(self) -> None:
        self.away = True
        self.answers = False
        CIRCUIT_BREAKER_OPEN.set(1)


def _what_is_held(shares: Sequence[SlotRange]) -> list[tuple[int, int, str]]:
    return [(share.first, share.last, share.generation) for share in shares]


def _by_slot(shares: Sequence[SlotRange]) -> list[RedisConnection]:
    if len(shares) == 1:
        return [shares[0].connection]
    return [share.connection for share in shares for _ in range(share.first, share.last + 1)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A value worth keeping until `expires_at`."""

    value: bytes
    expires_at: datetime


class Cache:
    """Values by key, read through from PostgreSQL."""

    def __init__(self, server: RedisServer, clock: Clock, variant: bytes = b"") -> None:
        """`variant` is another one where settings make other answers: like another FORM."""
        self._server = server
        self._clock = clock
        self._form = FORM + variant

    async def read_through(
        self, key: str, load: Callable[[], Awaitable[Entry | None]]
    ) -> bytes | None:
        """Return the value of `key`: from Redis, else from `load`, and then kept in Redis."""
        kind = key[: key.index(":")]
        if self._server.away:
            CACHE_READS[kind, "away"] += 1
            entry = await load()
            return entry.value if entry else None
        tag = _tag(key)
        lease = None
        try:
            redis = self._server.connection_of(tag) or await self._server.connect(tag)
            # Once for all: what is read under one generation is not to be filled under the next.
            name = f"{redis.generation}:{tag}"
            [kept] = await redis.get(name)
            if kept is not None:
                form, _, rest = kept.partition(b" ")
                if form == self._form:
                    expires_at, _, value = rest.partition(b" ")
                    # The server's clock ends an entry, this one's decides: they may differ.
                    if self._clock().timestamp() * 1000 < int(expires_at):
                        CACHE_READS[kind, "hit"] += 1
                        return value or None
            lease = await _take_lease(redis, name)
        except RedisAway:
            CACHE_READS[kind, "away"] += 1
        else:
            CACHE_READS[kind, "miss"] += 1
        entry = await load()
        if lease is not None:
            entry_or_nothing = entry or Entry(b"", self._clock() + NOTHING_FOR)
            await _fill(redis, name, lease, self._form, entry_or_nothing)
        return entry.value if entry else None

    async def forget(self, keys: Sequence[str]) -> None:
        """Remove the values of `keys`; raise RedisAway where Redis cannot be told."""
        await _delete(self._server.connect_to_tell, keys)

    async def forget_anyway(self, keys: Sequence[str]) -> None:
        """Like `forget`, whatever the breaker says; without keys, only ask for a sign of life."""
        if keys:
            await _delete(self._server.connect_anyway, keys)
        else:
            await self._server.ask()


async def _take_lease(redis: RedisConnection, name: str) -> str | None:
    """Return the right to fill `name`, or None while another reader has it."""
    token = secrets.token_hex(8)
    milliseconds = int(LEASE_FOR.total_seconds() * 1000)
    [taken] = await redis.call(("SET", _lease(name), token, "NX", "PX", milliseconds))
    return token if taken else None


async def _fill(redis: RedisConnection, name: str, lease: str, form: bytes, entry: Entry) -> None:
    """Put the value where the lease still holds; not on a connection that was made since."""
    expires_at = _milliseconds(entry.expires_at)
    value = b"%b %d %b" % (form, expires_at, entry.value)
    with suppress(RedisAway):
        await redis.call(("EVAL", _FILL, 2, name, _lease(name), lease, value, expires_at))


async def _delete(
    connect: Callable[[str], Awaitable[RedisConnection]], keys: Sequence[str]
) -> None:
    for start in range(0, len(keys), REMOVED_AT_ONCE):
        commands: dict[RedisConnection, list[Command]] = {}
        for tag in map(_tag, keys[start : start + REMOVED_AT_ONCE]):
            redis = await connect(tag)
            name = f"{redis.generation}:{tag}"
            # One for each key, because a cluster takes none over several slots.
            commands.setdefault(redis, []).append(("DEL", name, _lease(name), tag))
        await asyncio.gather(*(redis.call(*told) for redis, told in commands.items()))


def lasting_name(key: str) -> str:
    """Return the name of a key that outlives restarts of the server, and is forgotten like others.

    Unlike cached values, it is not part of the server's generation.
    """
    return _tag(key)


def _tag(key: str) -> str:
    """Return what the names of the value and of the lease share, which puts them in one slot."""
    return f"{{{key}}}"


def _lease(name: str) -> str:
    return f"{name}:lease"


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
