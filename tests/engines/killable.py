"""PostgreSQL and Valkey that can be killed and suspended, and proxies to them that break."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, urlsplit

from service import embedded
from tests.engines.redis_trouble import Proxy, listening

T = TypeVar("T")


class Engine:
    """A server of service.embedded. It starts again with its data, at the same address.

    Its calls run on one thread that lives as long as the server: the kernel ends the server
    together with the thread that started it.
    """

    def __init__(self, run: Callable[[], AbstractContextManager[str]], pid_file: Path) -> None:
        self._run = run
        self._pid_file = pid_file
        self._stack = ExitStack()
        self._thread = ThreadPoolExecutor(1)
        self.url = ""

    async def start(self) -> None:
        def enter() -> str:
            return self._stack.enter_context(self._run())

        self.url = await self._on_thread(enter)

    async def stop(self) -> None:
        """End the server, whatever state it is in."""
        self._signal(signal.SIGCONT)
        await self._on_thread(self._stack.close)

    async def kill(self) -> None:
        """End the server and its children at once."""
        self._signal(signal.SIGKILL)
        await self._on_thread(self._stack.close)

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def suspend(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        return int(self._pid_file.read_text().split("\n")[0])

    def close(self) -> None:
        self._thread.shutdown()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(OSError, ValueError):
            # The parent first, or it would start new ones.
            for pid in (self.pid, *children_of(self.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def postgresql(folder: Path, *, durable: bool = True) -> Engine:
    """Return a PostgreSQL, not started. Without `durable` it loses what it last acknowledged."""
    return Engine(
        lambda: embedded.postgresql(folder, durable=durable),
        folder / "postgresql" / "postmaster.pid",
    )


def valkey(folder: Path) -> Engine:
    """Return a Valkey, not started; it reads folder/valkey/dump.rdb if there is one."""
    return Engine(lambda: embedded.valkey(folder), folder / "valkey" / "valkey.pid")


def children_of(pid: int) -> list[int]:
    """Return the child processes of `pid`; none if it is gone."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


class Way(Proxy):
    """A proxy to a server, which can also be slow, or cut a connection where it hurts most."""

    def __init__(self, target: str, rng: random.Random) -> None:
        super().__init__(target)
        self._rng = rng
        self.delay = 0.0
        """The most seconds by which anything is delayed."""
        self.cut_at: bytes | None = None
        """Words in an answer that is not delivered: the connection is cut instead."""
        self.cut_in = 0.0
        """The share of such answers, from 0 to 1."""

    async def _passed_on(self, data: bytes) -> bytes:
        """Return what is delivered, once it is."""
        data = await super()._passed_on(data)
        if self.delay:
            await asyncio.sleep(self._rng.uniform(0, self.delay))
        if self.cut_at and self.cut_at in data and self._rng.random() < self.cut_in:
            raise ConnectionResetError
        return data


def socket_of(database_url: str) -> str:
    """Return where PostgreSQL listens, as a unix:// URL."""
    query = parse_qs(urlsplit(database_url).query)
    return f"unix://{query['host'][0]}/.s.PGSQL.{query['port'][0]}"


@asynccontextmanager
async def way_to(target: str, rng: random.Random) -> AsyncIterator[Way]:
    """Open a proxy to the server at `target`."""
    way = Way(target, rng)
    async with listening(way.serve) as url:
        way.url = url
        try:
            yield way
        finally:
            await way.close()
