"""One connection to Redis that all requests of a process share.

What requests want within one turn of the event loop goes out in one write; replies come back in
the order of the commands. With 64 requests under way that is next to no cost for each, where
redis-py, which gives each call a connection of its own for a while, adds twice what aiohttp needs
to answer at all. redis-py still reads the URL and makes the TLS context; hiredis packs and parses.
"""

import asyncio
import functools
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

TIMEOUT_SECONDS: Final = 0.25
LAST_CHANCE_SECONDS: Final = 0.01
FEW: Final = 4
"""Calls that are sent at once: to wait for the end of the turn takes a turn of its own, which are
17 µs for a look-up that comes alone. Of more each would cost a write."""
MOST_UNDER_WAY: Final = 10_000
"""Calls that may wait for replies: further ones are refused, so that memory stays bounded."""
_REFUSED: Final = re.compile(
    r"ReplyError: (WRONGPASS|NOAUTH|NOPERM|ERR (AUTH|Client sent AUTH|(invalid )?DB index))"
)
"""How Redis says that the user, the password or the database is wrong."""
Command = tuple[str | bytes | int, ...]
_INCOMPLETE: Final = object()


class RedisAway(Exception):
    """Redis did not answer in time, or did not lately."""


def pack(*commands: Command) -> bytes:
    """Return the commands as Redis reads them."""
    # hiredis' stub says a tuple of one.
    return b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]


def read_info(reply: bytes) -> dict[str, str]:
    """Return the lines of an INFO by their names."""
    return dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)


class RedisConnection(asyncio.Protocol):
    """A connection whose first failure is its last: then every call under way raises RedisAway.

    A time-out too, and an error reply: what else was asked of a Redis that hangs, is loading its
    data or is out of memory, is not worth waiting for.
    """

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self.run_id = ""
        """Another one means that the server was restarted, or that another took its place."""
        self.generation = ""
        """What keys begin with that must not be seen again once the server was restarted, was a
        replica in between, or slots were taken from it and given back: its run id at least.
        """
        self.is_closed = False
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._unsent: list[bytes] = []
        self._turn = 0.0
        """When the first of these was wanted."""
        self._busy = False
        """Whether calls wait for the others of their turn."""
        self._calls: deque[tuple[asyncio.Future[list[Any]], int, float]] = deque()
        """The calls under way: where the replies go, how many, and since when."""
        self._replies: list[Any] = []
        """Those of the first call that have come."""
        self._watch: asyncio.TimerHandle | None = None
        self._transport: asyncio.WriteTransport | None = None

    async def greet(self, options: dict[str, Any]) -> None:
        """Sign in, and learn which server it is."""
        commands: list[Command] = []
        if password := options.get("password"):
            commands.append(("AUTH", options.get("username", "default"), password))
        if db := options.get("db"):
            commands.append(("SELECT", db))
        *_, info = await self.call(*commands, ("INFO", "server"))
        self.run_id = self.generation = read_info(info)["run_id"]

    def call(self, *commands: Command) -> "asyncio.Future[list[Any]]":
        """Send the commands at the end of this turn; return their replies when they have come.

        The future raises RedisAway. The commands are sent whether or not anybody waits for it.
        """
        return self.call_packed(pack(*commands), len(commands))

    def get(self, name: str) -> "asyncio.Future[list[Any]]":
        """Like `call` with GET: there are more of these than of all others together."""
        command: Command = ("GET", name)
        return self.call_packed(hiredis.pack_command(command), 1)  # type: ignore[arg-type]

    def call_packed(self, packed: bytes, count: int) -> "asyncio.Future[list[Any]]":
        """Like `call`, with so many commands as `pack` returns them."""
        future = self._loop.create_future()
        if self.is_closed:
            future.set_exception(RedisAway("The connection is closed."))
            return future
        if len(self._calls) >= MOST_UNDER_WAY:
            self._fail(f"{MOST_UNDER_WAY} calls wait for their replies.")
            future.set_exception(RedisAway("Too many calls are under way."))
            return future
        if self._unsent:
            self._unsent.append(packed)
        else:
            self._turn = self._loop.time()
            self._busy = self._busy or len(self._calls) >= FEW
            if self._busy or self._transport is None:
                self._unsent.append(packed)
                self._loop.call_soon(self._send)
            else:
                self._transport.write(packed)
        self._calls.append((future, count, self._turn))
        if self._watch is None:
            self._watch = self._loop.call_at(self._turn + TIMEOUT_SECONDS, self._check)
        return future

    def close(self) -> None:
        """Close the connection; calls under way raise RedisAway."""
        self._end("The connection is closed.")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        replies, calls, next_reply = self._replies, self._calls, self._reader.gets
        try:
            self._reader.feed(data)
            while (reply := next_reply()) is not _INCOMPLETE:
                if isinstance(reply, hiredis.ReplyError):
                    raise reply
                replies.append(reply)
                if len(replies) == calls[0][1]:
                    future = calls.popleft()[0]
                    if not future.done():  # or whoever waited was cancelled
                        future.set_result(replies)
                    self._replies = replies = []
        except IndexError:
            self._fail("There was a reply that nobody had asked for.")
        except (hiredis.ProtocolError, hiredis.ReplyError) as error:
            self._fail(f"{type(error).__name__}: {error}")

    def eof_received(self) -> None:
        self._fail("Redis has closed the connection.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"The connection was lost: {exc}.")

    def _send(self) -> None:
        if self._transport is not None and not self.is_closed:
            self._transport.write(b"".join(self._unsent))
        self._busy = len(self._unsent) > FEW
        self._unsent.clear()

    def _check(self, *, for_the_last_time: bool = False) -> None:
        """Fail if the oldest call has waited too long; else look again when it will have."""
        self._watch = None
        if not self._calls:
            return
        due = self._calls[0][2] + TIMEOUT_SECONDS
        if self._loop.time() < due:
            self._watch = self._loop.call_at(due, self._check)
        elif for_the_last_time:
            self._fail("Redis did not answer in time.")
        else:
            # If it was this process that was held up, the replies may be there and not read yet.
            last_check = functools.partial(self._check, for_the_last_time=True)
            self._watch = self._loop.call_later(LAST_CHANCE_SECONDS, last_check)

    def _fail(self, reason: str) -> None:
        if not self.is_closed:
            failed = bool(self._calls)
            self._end(reason)
            if failed:
                self._on_failure()

    def _end(self, reason: str) -> None:
        self.is_closed = True
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        while self._calls:
            future, *_ = self._calls.popleft()
            if not future.done():
                future.set_exception(RedisAway(reason))


async def open_connection(url: str, on_failure: Callable[[], None]) -> RedisConnection:
    """Return a connection that has signed in and knows its server; raise RedisAway.

    `on_failure` is called when calls under way have failed.
    """
    options: dict[str, Any] = dict(parse_url(url))
    loop = asyncio.get_running_loop()
    connection = RedisConnection(on_failure)
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            if "path" in options:
                await loop.create_unix_connection(lambda: connection, options["path"])
            else:
                host, port = options.get("host", "localhost"), options.get("port", 6379)
                context = _tls_context(options)
                await loop.create_connection(lambda: connection, host, port, ssl=context)
            await connection.greet(options)
    except RedisAway as error:
        remedy = "; correct REDIS_URL" if _REFUSED.match(str(error)) else ""
        raise RedisAway(f"{error}{remedy}") from error
    except OSError as error:
        raise RedisAway(f"{type(error).__name__}: {error}") from error
    finally:
        if not connection.run_id:  # or whoever waited was cancelled
            connection.close()
    return connection


def _tls_context(options: dict[str, Any]) -> Any:
    if options.pop("connection_class", None) is not SSLConnection:
        return None
    return SSLConnection(**options).ssl_context.get()
