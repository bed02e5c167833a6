"""Reading rows by key: all keys wanted in a turn of the event loop, or a few, with one statement.

A statement each costs four times what aiohttp needs to answer at all, most of it for the
connection and the round trip; one for 64 requests costs each next to nothing. Nobody gets a row
that was read before it was asked for: a key never joins a statement under way, since what that
reads may be older than a write that has been answered meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

MOST_AT_ONCE: Final = 2
"""Statements under way: one is read while another is sent; more would only be smaller."""
MOST_KEYS: Final = 1000
"""Keys of one statement."""
FEW_KEYS: Final = 3
"""So few are read at once; more wait while turns of the loop add to them."""
MANY_KEYS: Final = 32
"""So many wait no longer: with more, the share of each would hardly become smaller."""
MOST_PAGES: Final = 50
"""Pages of one statement; a page has up to a hundred rows."""
K = TypeVar("K")
V = TypeVar("V")


class BatchLoader(Generic[K, V]):
    """Rows by key, as `read` returns them for at most `most` keys."""

    def __init__(
        self, read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], most: int = MOST_KEYS
    ) -> None:
        self._read = read
        self._most = most
        self._wanted: dict[K, list[asyncio.Future[V | None]]] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    async def find(self, key: K) -> V | None:
        """Return the row of the key as it is now, or None; raise what `read` does."""
        loop = asyncio.get_running_loop()
        # One for each caller: if one gives up, the others still get the row.
        future: asyncio.Future[V | None] = loop.create_future()
        if not self._wanted:
            loop.call_soon(self._start)
        self._wanted.setdefault(key, []).append(future)
        return await future

    def _start(self, before: int = 0) -> None:
        """Read what is wanted, unless the turn since there were `before` keys added to it."""
        if max(before, FEW_KEYS) < len(self._wanted) < MANY_KEYS:
            asyncio.get_running_loop().call_soon(self._start, len(self._wanted))
        elif self._wanted and len(self._under_way) < MOST_AT_ONCE:
            wanted, self._wanted = self._wanted, {}
            for key in list(wanted)[self._most :]:
                self._wanted[key] = wanted.pop(key)
            task = asyncio.create_task(self._answer(wanted))
            self._under_way.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._start()

    async def _answer(self, wanted: "dict[K, list[asyncio.Future[V | None]]]") -> None:
        waiting = [(key, future) for key, futures in wanted.items() for future in futures]
        try:
            found = await self._read(list(wanted))
            for key, future in waiting:
                if not future.done():
                    future.set_result(found.get(key))
        except Exception as error:  # noqa: BLE001  # the callers raise it
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
        finally:
            for _, future in waiting:
                future.cancel()  # still waiting only if this task was cancelled


class PageLoader(Generic[K, V]):
    """Pages of lists by key: as `read` returns them, given their size, in the order of the keys."""

    def __init__(self, read: Callable[[Sequence[K], int], Awaitable[Sequence[list[V]]]]) -> None:
        self._read = read
        self._pages = BatchLoader[tuple[K, int], list[V]](self._read_all, MOST_PAGES)

    async def find(self, key: K, limit: int) -> list[V]:
        """Return the page of up to `limit` rows; raise what `read` does."""
        return await self._pages.find((key, limit)) or []

    async def _read_all(self, wanted: Sequence[tuple[K, int]]) -> dict[tuple[K, int], list[V]]:
        found: dict[tuple[K, int], list[V]] = {}
        for limit in {limit for _, limit in wanted}:
            alike = [one for one in wanted if one[1] == limit]
            pages = await self._read([key for key, _ in alike], limit)
            found.update(zip(alike, pages, strict=True))
        return found
