"""Servers in place of Redis: some never were Redis, one is a proxy that can be cut."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

Streams = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Proxy:
    """A proxy to Redis that can be cut, held up and mended, and can give Redis another run id."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._open = True
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.pairs: set[asyncio.Task[None]] = set()
        self.url = ""
        self.connections = 0
        """How many connections were made or tried."""
        self.run_id: str | None = None
        """What Redis appears to have for a run id: another one means another server."""

    def cut(self) -> None:
        """End all connections, and every new one immediately."""
        self._open = False
        for pair in self.pairs:
            pair.cancel()

    def hold_up(self) -> None:
        """Keep connections open, but deliver nothing."""
        self._flowing.clear()

    def mend(self) -> None:
        self._open = True
        self._flowing.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if not self._open:
            writer.transport.abort()
            return
        pair = asyncio.create_task(self._join(reader, writer))
        self.pairs.add(pair)
        pair.add_done_callback(self.pairs.discard)
        await asyncio.wait([pair])

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await self._connect()
        except OSError:  # nothing listens there
            writer.transport.abort()
            return
        pumps = [
            asyncio.create_task(self._pump(reader, back)),
            asyncio.create_task(self._pump(there, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.transport.abort()
            back.transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.scheme == "unix":
            return await asyncio.open_unix_connection(self._target.path)
        return await asyncio.open_connection(self._target.hostname, self._target.port)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(await self._passed_on(data))
            await writer.drain()

    async def _passed_on(self, data: bytes) -> bytes:
        """Return what is delivered, when it is."""
        await self._flowing.wait()
        if self.run_id is None:
            return data
        return re.sub(rb"run_id:\w{40}", b"run_id:" + self.run_id.encode(), data)

    async def close(self) -> None:
        self.cut()
        await asyncio.gather(*self.pairs, return_exceptions=True)


@asynccontextmanager
async def proxied(target: str, **options: Any) -> AsyncIterator[Proxy]:
    """Open a proxy to the Redis at `target`."""
    proxy = Proxy(target)
    async with listening(proxy.serve, **options) as url:
        proxy.url = url
        try:
            yield proxy
        finally:
            await proxy.close()


@asynccontextmanager
async def refusing(_: str) -> AsyncIterator[str]:
    """Nothing listens at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"redis://127.0.0.1:{port}"


@asynccontextmanager
async def silent(_: str) -> AsyncIterator[str]:
    """A server that accepts connections and never says anything."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.transport.abort()

    async with listening(say_nothing) as url:
        yield url


@asynccontextmanager
async def hanging_up(_: str) -> AsyncIterator[str]:
    """A server that closes every connection at the first byte."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    async with listening(hang_up) as url:
        yield url


@asynccontextmanager
async def babbling(_: str) -> AsyncIterator[str]:
    """A server that is not Redis, and answers in HTTP."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with listening(babble) as url:
        yield url


@asynccontextmanager
async def listening(streams: Streams, **options: Any) -> AsyncIterator[str]:
    """Have `streams` serve a loopback port; yield its address as a Redis URL."""
    server = await asyncio.start_server(streams, "127.0.0.1", 0, **options)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"redis://{host}:{port}"
    finally:
        server.close()
        await server.wait_closed()
