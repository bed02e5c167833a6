"""A crowd: clients that come whether or not the earlier ones were answered, and do not wait long.

MOST_CONNECTIONS are open before they come. A client takes an idle one, or opens one in place of
one that was closed; if there is none, it goes away immediately, as from a proxy. A client without
an answer within the time limit, counted from when it came, leaves and closes the connection.
"""

import random
import re
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final
from urllib.parse import urlsplit

MOST_CONNECTIONS: Final = 1000
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_CODE: Final = re.compile(rb'"code": ?"([a-z-]+)"')


@dataclass(frozen=True, slots=True)
class Wish:
    """A request, and how the right answer to it begins and what it contains."""

    sent: bytes
    status: bytes
    contains: bytes = b""


@dataclass
class Found:
    """What became of the crowd's requests."""

    seconds: float
    good: list[float] = field(default_factory=list)
    """Milliseconds that right answers in time took, counted from when the client came."""
    others: Counter[str] = field(default_factory=Counter)
    """How many had another outcome, by kind."""
    lateness: list[float] = field(default_factory=list)
    """Milliseconds by which this process was late itself: a check of the measurement."""

    @property
    def rate(self) -> float:
        return len(self.good) / self.seconds


class _Client:
    """One connection, and what it waits for."""

    __slots__ = ("connection", "due", "received", "wish")

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.due = 0.0
        self.wish: Wish | None = None
        self.received = b""


class Crowd:
    """Clients of the server at `url`; `next_wish` says what the next of them wants."""

    def __init__(self, url: str, next_wish: Callable[[], Wish], limit_seconds: float) -> None:
        self._address = (urlsplit(url).hostname, urlsplit(url).port)
        self._next_wish = next_wish
        self._limit = limit_seconds
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._idle: list[_Client] = []
        self._under_way: deque[tuple[float, _Client]] = deque()
        """By when each has to be answered, in order."""
        self._found = Found(0.0)

    def closed_loop(self, connections: int, seconds: float) -> Found:
        """Let so many come again as soon as they are answered."""
        return self._run(seconds, connections, None)

    def open_loop(self, rate: float, seconds: float, seed: int) -> Found:
        """Let so many a second come, as far apart as customers do (Poisson)."""
        gap = random.Random(seed).expovariate
        self._open_all()
        return self._run(seconds, MOST_CONNECTIONS, lambda: gap(rate))

    def _run(self, seconds: float, most: int, gap: Callable[[], float] | None) -> Found:
        found = self._found = Found(seconds)
        due = now = perf_counter()
        end = now + seconds
        while now < end or (gap and self._under_way):
            if gap is None:
                while self._has_room(most):
                    self._send(now)
                due = now + 0.01
            while gap and due <= now and due < end:
                found.lateness.append((now - due) * 1000)
                if self._has_room(most):
                    self._send(due)
                else:
                    found.others["no connection"] += 1
                due += gap()
            for number, events in self._epoll.poll(max(0.0, min(0.01, due - now))):
                if (client := self._clients.get(number)) is not None:
                    self._go_on(client, events)
            now = perf_counter()
            self._leave(now)
        for client in [*self._clients.values()]:
            self._close(client)
        self._idle.clear()
        self._under_way.clear()
        return found

    def _leave(self, now: float) -> None:
        """Close the connections of clients that have waited too long."""
        while self._under_way and self._under_way[0][0] < now:
            deadline, client = self._under_way.popleft()
            if client.wish is not None and client.due + self._limit == deadline:
                self._found.others["too late"] += 1
                self._close(client)

    def _open_all(self) -> None:
        """Open all connections while the service is calm."""
        while len(self._clients) < MOST_CONNECTIONS:
            client = self._connect()
            self._epoll.modify(client.connection.fileno(), select.EPOLLIN)
            self._idle.append(client)
            if len(self._clients) % 50 == 0:
                time.sleep(0.02)

    def _connect(self) -> _Client:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect_ex(self._address)
        client = self._clients[connection.fileno()] = _Client(connection)
        self._epoll.register(connection.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return client

    def _has_room(self, most: int) -> bool:
        return bool(self._idle) or len(self._clients) < most

    def _send(self, due: float) -> None:
        """Send on an idle connection, or on a new one once it is open."""
        wish = self._next_wish()
        while self._idle:
            client = self._idle.pop()
            if client.connection.fileno() >= 0:
                client.connection.send(wish.sent)
                break
        else:
            client = self._connect()
        client.due, client.wish, client.received = due, wish, b""
        self._under_way.append((due + self._limit, client))

    def _go_on(self, client: _Client, events: int) -> None:
        if events & select.EPOLLOUT:
            self._epoll.modify(client.connection.fileno(), select.EPOLLIN)
            if client.wish is not None and events == select.EPOLLOUT:
                client.connection.send(client.wish.sent)
        if events == select.EPOLLOUT:
            return
        try:
            data = client.connection.recv(65536)
        except OSError:
            data = b""
        if data:
            self._read(client, data)
            return
        if client.wish is not None:
            self._found.others["cut"] += 1
        self._close(client)

    def _read(self, client: _Client, data: bytes) -> None:
        wish = client.wish
        client.received = received = client.received + data
        head, end, body = received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if wish is None or not end or (length and len(body) < int(length[1])):
            return
        client.wish = None
        status = head[9:12]
        if status == wish.status and wish.contains in body:
            self._found.good.append((perf_counter() - client.due) * 1000)
        else:
            code = _CODE.search(body)
            self._found.others[f"{status.decode()} {code[1].decode() if code else ''}"] += 1
        if b"\r\nConnection: close" in head:
            self._close(client)
        else:
            self._idle.append(client)

    def _close(self, client: _Client) -> None:
        client.wish = None
        del self._clients[client.connection.fileno()]
        client.connection.close()
