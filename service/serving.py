"""Running the application: one process a worker, on one port, until a signal ends it.

Each worker has a listening socket of its own for the port (SO_REUSEPORT). The parent opens all
of them and keeps them open, so that a connection that waits in a dead worker's queue is answered
by the worker that takes its place.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from aiohttp import web
from prometheus_client.multiprocess import mark_process_dead

from service.api.keys import STOPPING
from service.app import FINISH_SECONDS, create_app, create_metrics_app, worker_alone
from service.settings import Settings

GOODBYE_SECONDS: Final = 0.5
"""Once the process is told to end, how long clients may still ask on connections they hold."""
DRAIN_SECONDS: Final = 3.0
"""How long requests under way may then take."""
IDLE_SECONDS: Final = 75.0
"""How long a connection may take for the headers of its first request, and be idle afterwards:
longer than proxies keep theirs, which would otherwise send a request on one that is ending."""
LINGERING_SECONDS: Final = 2.0
"""How long what is left of a refused body is read, for the client to see the answer."""
UNREAD_SECONDS: Final = 30.0
"""How long a client may leave an answer unread, or unacknowledged, before it counts as gone."""
BACKLOG: Final = 256
"""How many connections may wait to be accepted: of more, the last would be accepted when their
clients have left, and the work for them be lost."""
log = logging.getLogger(__name__)


class PortTaken(Exception):
    """The service cannot listen where the settings say: one sentence for the operator."""


def listen(host: str, port: int, workers: int) -> list[socket.socket]:
    """Return one listening socket for each worker; raise PortTaken."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        shared = workers > 1
        if shared:
            # With SO_REUSEPORT another service on the port would go unseen, and get half of
            # the connections.
            socket.create_server(address, family=family).close()
        sockets = [
            socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=shared)
            for _ in range(workers)
        ]
        for listener in sockets:
            if sys.platform == "linux":  # the connections have it from the listening socket
                milliseconds = int(UNREAD_SECONDS * 1000)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    except OSError as error:
        # Python adds the address to the system's words.
        reason = str(error.strerror).partition(" (while")[0]
        raise PortTaken(f"Cannot listen on {host}:{port}: {reason}.") from error
    return sockets


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where one worker listens; `metrics` is a port that shows them alone."""

    requests: socket.socket
    metrics: socket.socket | None

    def close(self) -> None:
        self.requests.close()
        if self.metrics is not None:
            self.metrics.close()


def listeners_of(settings: Settings) -> list[Listeners]:
    """Return what each worker listens on; raise PortTaken."""
    host, port, workers = settings.host, settings.metrics_port, settings.workers
    requests = listen(host, settings.port, workers)
    metrics = listen(host, port, workers) if port else [None] * workers
    return [*map(Listeners, requests, metrics)]


def serve(settings: Settings, sockets: list[Listeners], when_ready: Callable[[], None]) -> None:
    """Serve on `sockets` until SIGTERM or SIGINT, then let requests under way end.

    For `shutdown_delay` requests are still taken, and /health/ready tells that they will not be:
    whatever stands in front has to hear of it first.
    """
    if len(sockets) == 1:
        _run(_work(settings, sockets[0], None, when_ready))
    else:
        _Supervisor(settings, sockets, when_ready).run()


class _Supervisor:
    """Starts the workers, starts another where one dies, and ends all of them."""

    def __init__(
        self, settings: Settings, sockets: list[Listeners], when_ready: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._sockets = sockets
        self._when_ready = when_ready
        self._workers: dict[int, int] = {}
        self._stopping = False
        # A worker reads its end until the parent's closes, however the parent ends.
        self._parent_lives, self._kept_open = os.pipe()

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        for index in range(len(self._sockets)):
            self._start(index)
        self._when_ready()
        while not self._stopping:
            for pid in self._reap():
                index = self._workers.pop(pid)
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
                if not self._stopping:
                    log.error("worker died, starting another: %d", pid)
                    self._start(index)
            time.sleep(0.2)
        self._end()

    def _start(self, index: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_worker(index)
        self._workers[pid] = index

    def _become_worker(self, index: int) -> NoReturn:
        status = 1
        try:
            os.close(self._kept_open)
            for other in set(self._sockets) - {self._sockets[index]}:
                other.close()  # or it would take connections that nobody here accepts
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, who tells
            _run(_work(self._settings, self._sockets[index], self._parent_lives, lambda: None))
            status = 0
        except BaseException:
            log.exception("worker failed")
            time.sleep(1)  # what fails at start would otherwise fail again and again at once
        finally:
            logging.shutdown()
            os._exit(status)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _end(self) -> None:
        for listener in self._sockets:
            listener.close()
        for pid in self._workers:
            os.kill(pid, signal.SIGTERM)
        delay = self._settings.shutdown_delay.total_seconds()
        ending = GOODBYE_SECONDS + DRAIN_SECONDS + FINISH_SECONDS
        deadline = time.monotonic() + delay + ending + 1
        while self._workers and time.monotonic() < deadline:
            for pid in self._reap():
                del self._workers[pid]
            time.sleep(0.02)
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> list[int]:
        return [pid for pid in self._workers if os.waitpid(pid, os.WNOHANG)[0]]


async def _work(
    settings: Settings,
    listeners: Listeners,
    parent_lives: int | None,
    when_ready: Callable[[], None],
) -> None:
    """Serve on the sockets until a signal comes or the parent is gone."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if parent_lives is None:
        loop.add_signal_handler(signal.SIGINT, stop.set)
    else:
        loop.add_reader(parent_lives, stop.set)
    app = create_app(settings)
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=DRAIN_SECONDS,
        keepalive_timeout=IDLE_SECONDS,
        lingering_time=LINGERING_SECONDS,
        auto_decompress=False,  # a compressed body is refused, not unpacked to see how large it is
    )
    await runner.setup()
    # What is here to stay need not be looked at again and again: 4 µs of each look-up.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)
    gc.enable()
    async with AsyncExitStack() as closing:
        closing.push_async_callback(runner.cleanup)
        site = web.SockSite(runner, listeners.requests.dup(), backlog=BACKLOG)
        await site.start()
        if listeners.metrics is not None:
            metrics = web.AppRunner(
                create_metrics_app(app), access_log=None, shutdown_timeout=GOODBYE_SECONDS
            )
            await metrics.setup()
            closing.push_async_callback(metrics.cleanup)
            await web.SockSite(metrics, listeners.metrics.dup(), backlog=BACKLOG).start()
        log.info("listening on %s", settings.public_url)
        when_ready()
        await stop.wait()
        log.info("stopping")
        app[STOPPING].set()
        await asyncio.sleep(settings.shutdown_delay.total_seconds())
        await site.stop()
        await _take_those_who_wait(runner, listeners.requests)
        deadline = loop.time() + GOODBYE_SECONDS
        assert runner.server is not None
        while runner.server.connections and loop.time() < deadline:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)


async def _take_those_who_wait(runner: web.AppRunner, listener: socket.socket) -> None:
    """Accept the connections in the queue of the socket, which closing it would reset."""
    assert runner.server is not None
    listener.setblocking(False)
    with listener, suppress(OSError):  # nobody waits any more
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(runner.server, connection)


def work_off_jobs(settings: Settings) -> None:
    """Do jobs until SIGTERM or SIGINT, then let those under way end."""
    _run(_work_off_jobs(settings))


async def _work_off_jobs(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    async with worker_alone(settings) as worker:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop)
        log.info("doing jobs")
        await worker.run()
        log.info("stopping")


def _run(work: Coroutine[Any, Any, None]) -> None:
    if sys.platform == "win32":
        asyncio.run(work)
    else:
        import uvloop  # not there on Windows

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
