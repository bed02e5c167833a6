"""Which server of Redis holds which key: the only one, a primary, or a node of a cluster.

Each kind of REDIS_URL has a class whose `look` asks anew. Of several servers nothing is taken for
true that one of them says alone, because a primary that is cut off from the others goes on as one
for a while:

- A cluster's slots are held by whom all those who hold some name. Another can only have become
  one if most of them have agreed, and then not all still say the same.
- The primary is the one that most of the sentinels name, and that is none's replica.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import urlsplit

from service.redis.connection import RedisAway, RedisConnection, open_connection, read_info
from service.redis.urls import RedisUrl, read_redis_url

SLOTS: Final = 16_384
T = TypeVar("T")
_Holders = tuple[tuple[int, int, str], ...]
"""First slot, last slot and the URL of who holds them."""


@dataclass(frozen=True, slots=True)
class SlotRange:
    """The slots from `first` to `last`, and who holds them."""

    first: int
    last: int
    connection: RedisConnection
    generation: str
    """As in RedisConnection."""


class OneServer:
    """The server that holds everything."""

    several = False

    def __init__(self, url: RedisUrl, on_failure: Callable[[], None]) -> None:
        [self._url] = url.named
        self._connections = _Connections(on_failure)

    async def look(self) -> Sequence[SlotRange]:
        connection = await self._connections.to(self._url)
        await connection.call(("PING",))
        return [SlotRange(0, SLOTS - 1, connection, connection.run_id)]

    def close(self) -> None:
        self._connections.close()


class Cluster:
    """The nodes of a Redis Cluster."""

    several = True

    def __init__(self, url: RedisUrl, on_failure: Callable[[], None]) -> None:
        self._url = url
        self._connections = _Connections(on_failure)
        self._known: set[str] = set()
        """Those who held slots when all agreed."""

    async def look(self) -> Sequence[SlotRange]:
        told: dict[str, tuple[_Holders, str]] = {}
        failures: list[str] = []
        contradicted: set[_Holders] = set()
        for asked in (self._known, self._url.named):
            told |= await _answers(self._ask, set(asked) - told.keys(), failures)
            while claims := {holders for holders, _ in told.values()} - contradicted:
                holders = claims.pop()
                urls = {url for _, _, url in holders}
                told |= await _answers(self._ask, urls - told.keys(), failures)
                if all(url in told and told[url][0] == holders for url in urls):
                    self._known = urls
                    self._connections.keep(urls)
                    return [
                        SlotRange(first, last, await self._connections.to(url), told[url][1])
                        for first, last, url in holders
                    ]
                contradicted.add(holders)
        reasons = "; ".join(dict.fromkeys(failures)) or "they do not agree"
        raise RedisAway(f"The nodes of the cluster: {reasons}.")

    async def _ask(self, url: str) -> tuple[_Holders, str]:
        """Return who holds what, in the words of one node, and its generation."""
        connection = await self._connections.to(url)
        slots, info = await connection.call(("CLUSTER", "SLOTS"), ("CLUSTER", "INFO"))
        told = read_info(info)
        if told["cluster_state"] != "ok":
            raise RedisAway("some are cut off, or have failed")
        asked = (urlsplit(url).hostname or "").encode()
        unknown = (None, b"", b"?")  # that is how it says that it was reached there
        holders = sorted(
            (first, last, self._url.to((asked if host in unknown else host).decode(), port))
            for first, last, (host, port, *_), *_ in slots
        )
        if sum(last - first + 1 for first, last, _ in holders) != SLOTS:
            raise RedisAway("some slots have no node")
        # It has another epoch when it was a replica in between, or slots have come to it: then
        # keys of an earlier time may have come back with them.
        return tuple(holders), f"{connection.run_id}.{told['cluster_my_epoch']}"

    def close(self) -> None:
        self._connections.close()


class Sentinels:
    """The primary that Redis Sentinel watches."""

    several = True

    def __init__(self, url: RedisUrl, on_failure: Callable[[], None]) -> None:
        self._url = url
        self._sentinels = _Connections(lambda: None)
        self._primary = _Connections(on_failure)

    async def look(self) -> Sequence[SlotRange]:
        failures: list[str] = []
        answers = await _answers(self._ask, self._url.named, failures)
        [(url, named)] = Counter(answers.values()).most_common(1) or [("", 0)]
        if named * 2 <= len(self._url.named):
            reasons = "; ".join(dict.fromkeys(failures)) or "they do not agree"
            raise RedisAway(f"Most of the sentinels: {reasons}.")
        self._primary.keep({url})
        connection = await self._primary.to(url)
        [info] = await connection.call(("INFO", "replication"))
        told = read_info(info)
        if told["role"] != "master":
            raise RedisAway("The server that the sentinels name is not a primary.")
        # It has another one when it was started again, or was a replica in between.
        return [SlotRange(0, SLOTS - 1, connection, told["master_replid"])]

    async def _ask(self, url: str) -> str:
        """Return the URL of the primary that one sentinel names."""
        sentinel = await self._sentinels.to(url)
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.service)
        [address] = await sentinel.call(command)
        if address is None:
            raise RedisAway(f"A sentinel does not know {self._url.service!r}.")
        host, port = address
        return self._url.to(host.decode(), int(port))

    def close(self) -> None:
        self._sentinels.close()
        self._primary.close()


class _Connections:
    """One to each server, made when it is needed."""

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self._on_failure = on_failure
        self._open: dict[str, RedisConnection] = {}

    async def to(self, url: str) -> RedisConnection:
        connection = self._open.get(url)
        if connection is None or connection.is_closed:
            connection = self._open[url] = await open_connection(url, self._on_failure)
        return connection

    def keep(self, urls: set[str]) -> None:
        """Close all others."""
        for url in self._open.keys() - urls:
            self._open.pop(url).close()

    def close(self) -> None:
        self.keep(set())


async def _answers(
    ask: Callable[[str], Awaitable[T]], urls: Iterable[str], failures: list[str]
) -> dict[str, T]:
    """Ask all at once; return the answers of those who gave one, and note why others did not."""
    asked = list(urls)
    answers: dict[str, T] = {}
    for url, answer in zip(
        asked, await asyncio.gather(*map(ask, asked), return_exceptions=True), strict=True
    ):
        if isinstance(answer, RedisAway):
            failures.append(str(answer))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            answers[url] = answer
    return answers


Servers = OneServer | Cluster | Sentinels


def servers_of(url: str, on_failure: Callable[[], None]) -> Servers:
    """Return the servers that REDIS_URL names, not connected.

    `on_failure` is called when calls to one that holds keys have failed.
    """
    read = read_redis_url(url)
    match read.kind:
        case "server":
            return OneServer(read, on_failure)
        case "cluster":
            return Cluster(read, on_failure)
        case "sentinel":
            return Sentinels(read, on_failure)
