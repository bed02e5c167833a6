"""The open loop: requests at a fixed rate, whether or not the earlier ones have been answered.

A closed loop waits for a server that stalls, and does not see how long other clients would have
waited. Here a latency is counted from the instant at which the request was due.
"""

import random
import re
import select
import socket
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final
from urllib.parse import urlsplit

CONNECTIONS: Final = 64
STRAGGLE_SECONDS: Final = 5.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Latencies:
    """The statuses of one run's answers, and after how many milliseconds they came."""

    sorted: list[float]
    statuses: Counter[int]
    unfinished: int

    def percentile(self, share: float) -> float:
        return self.sorted[min(len(self.sorted) - 1, int(share * len(self.sorted)))]


@dataclass
class _Exchange:
    due: float
    received: bytes = b""

    def status(self) -> int | None:
        """Return the status once the whole answer is here."""
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if not end or (length and len(body) < int(length[1])):
            return None
        return int(head[9:12])


def run(url: str, requests: Sequence[bytes], rate: float, seconds: float, seed: int) -> Latencies:
    """Send requests for some seconds, at random intervals (Poisson)."""
    arrivals = random.Random(seed)
    host, port = urlsplit(url).hostname, urlsplit(url).port
    idle = deque(socket.create_connection((host, port)) for _ in range(CONNECTIONS))
    for connection in idle:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    busy: dict[socket.socket, _Exchange] = {}
    waiting: deque[float] = deque()
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    sent = 0
    started = now = perf_counter()
    due = started + arrivals.expovariate(rate)
    while now < started + seconds or (
        (busy or waiting) and now < started + seconds + STRAGGLE_SECONDS
    ):
        while due <= now and due < started + seconds:
            waiting.append(due)
            due += arrivals.expovariate(rate)
        while waiting and idle:
            connection = idle.popleft()
            busy[connection] = _Exchange(waiting.popleft())
            connection.sendall(requests[sent % len(requests)])
            sent += 1
        # select, not epoll, because its time-out is precise to the microsecond.
        readable, _, _ = select.select(list(busy), [], [], max(0.0, min(0.1, due - now)))
        now = perf_counter()
        for connection in readable:
            exchange = busy[connection]
            exchange.received += connection.recv(65536)
            if (status := exchange.status()) is not None:
                latencies.append((now - exchange.due) * 1000)
                statuses[status] += 1
                del busy[connection]
                idle.append(connection)
    unfinished = len(busy) + len(waiting)
    for connection in (*idle, *busy):
        connection.close()
    return Latencies(sorted(latencies), statuses, unfinished)
