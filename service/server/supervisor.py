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

from service.api.http.app_keys import STOPPING
from service.api.http.unreadable import Runner
from service.app import FINISH_SECONDS, create_app, create_metrics_app
from service.services import make_worker, open_services
from service.settings.settings import Settings

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
AT_ONCE_SECONDS: Final = 5.0
"""A worker that dies sooner has died at once."""
TRIES: Final = 3
"""When so many in a row have died at once, more would do so too, and clients would only wait."""
log = logging.getLogger(__name__)


class PortTaken(Exception):
    """The service cannot listen where the settings say: one sentence for the operator."""


class WorkersFail(Exception):
    """No worker can be had: one sentence for the operator."""


@dataclass(frozen=True)
class _Place:
    """An address to listen on, and which word of HOST stands for it."""

    host: str
    family: int
    address: Any
    """As the socket module has it."""

    @property
    def is_everywhere(self) -> bool:
        return self.address[0] in {"0.0.0.0", "::"}  # noqa: S104  # compared, not bound

    def is_of_this_machine(self) -> bool:
        address, _, *rest = self.address
        try:
            with socket.socket(self.family, socket.SOCK_STREAM) as probe:
                probe.bind((address, 0, *rest))
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where one worker listens; `metrics` are of a port that shows them alone."""

    requests: list[socket.socket]
    metrics: list[socket.socket]

    def close(self) -> None:
        for listener in [*self.requests, *self.metrics]:
            listener.close()


def listeners_of(settings: Settings) -> list[Listeners]:
    """Return what each worker listens on; raise PortTaken."""
    requests = listen(settings.host, settings.port, settings.workers)
    port = settings.metrics_port
    metrics = listen(settings.host, port, settings.workers) if port else [[] for _ in requests]
    return [*map(Listeners, requests, metrics)]


def listen(hosts: str, port: int, workers: int) -> list[list[socket.socket]]:
    """Return for each worker a listening socket at each address of `hosts`, between commas.

    Raises PortTaken. `::` takes IPv4 too, unless an address of IPv4 is named beside it.
    """
    shared = workers > 1
    opened: list[list[socket.socket]] = [[] for _ in range(workers)]
    places = _places(hosts, port)
    only_ipv6 = any(place.family == socket.AF_INET for place in places)
    for place in places:
        dual = place.address[0] == "::" and not only_ipv6 and socket.has_dualstack_ipv6()
        try:
            if shared:
                # With SO_REUSEPORT another service on the port would go unseen, and get half of
                # the connections.
                _open(place, dual=dual, shared=False).close()
            for opened_here in opened:
                opened_here.append(_open(place, dual=dual, shared=shared))
        except OSError as error:
            raise _not_listening(place.host, port, error) from error
    return opened


def _places(hosts: str, port: int) -> list[_Place]:
    """Return where to listen, nowhere twice; raise PortTaken where a host does not resolve."""
    found: dict[Any, _Place] = {}
    for host in [word.strip().strip("[]") for word in hosts.split(",") if word.strip()]:
        try:
            told = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _not_listening(host, port, error) from error
        named = [_Place(host, family, address) for family, *_, address in told]
        # A name may have an address that this machine lacks: localhost where IPv6 is off.
        here = [place for place in named if place.is_of_this_machine()]
        found |= {place.address: place for place in here or named}
    if not found:
        raise PortTaken("HOST names no address to listen on.")
    # All addresses of a family are its others too.
    all_of = {place.family for place in found.values() if place.is_everywhere}
    return [place for place in found.values() if place.is_everywhere or place.family not in all_of]


def _open(place: _Place, *, dual: bool, shared: bool) -> socket.socket:
    listener = socket.create_server(
        place.address,
        family=place.family,
        backlog=BACKLOG,
        reuse_port=shared,
        dualstack_ipv6=dual,
    )
    if sys.platform == "linux":  # the connections have it from the listening socket
        milliseconds = int(UNREAD_SECONDS * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


def _not_listening(host: str, port: int, error: Exception) -> PortTaken:
    # Python adds the address to the system's words.
    reason = str(getattr(error, "strerror", None) or "not a host name").partition(" (while")[0]
    shown = f"[{host}]" if ":" in host else host
    return PortTaken(f"Cannot listen on {shown}:{port}: {reason}.")


def serve(settings: Settings, listening: list[Listeners], when_ready: Callable[[], None]) -> None:
    """Serve on these sockets until SIGTERM or SIGINT, then let requests under way end.

    For `shutdown_delay` requests are still taken, and /health/ready tells that they will not be:
    whatever stands in front has to hear of it first. Raises WorkersFail.
    """
    if len(listening) == 1:
        _run(_work(settings, listening[0], None, when_ready))
    else:
        _Supervisor(settings, listening, when_ready).run()


@dataclass
class _Slot:
    """The place of one worker, which others take when it dies."""

    listeners: Listeners
    started_at: float = 0.0
    ready: int = -1
    """The end of a pipe on which the worker says that it serves."""
    has_served: bool = False
    failures: int = 0
    """How many workers in a row have died at once."""

    def note_death(self, status: int) -> None:
        """Count it, unless the worker had served for a while or was ended from outside."""
        served = bool(os.read(self.ready, 1))
        os.close(self.ready)
        self.has_served = self.has_served or served
        lived = time.monotonic() - self.started_at
        ended = status == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
        if (ended and self.has_served) or (served and lived > AT_ONCE_SECONDS):
            self.failures = 0
        else:
            self.failures += 1


class _Supervisor:
    """Starts the workers, starts another where one dies, and ends all of them."""

    def __init__(
        self, settings: Settings, listening: list[Listeners], when_ready: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._slots = [_Slot(listeners) for listeners in listening]
        self._when_ready = when_ready
        self._workers: dict[int, _Slot] = {}
        self._stopping = False
        # A worker reads its end until the parent's closes, however the parent ends.
        self._parent_lives, self._kept_open = os.pipe()

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        for slot in self._slots:
            self._start(slot)
        self._when_ready()
        while not self._stopping:
            for pid, slot, status in self._reap():
                slot.note_death(status)
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
                if slot.failures >= TRIES:
                    self._end()
                    raise WorkersFail(
                        f"{TRIES} workers in a row have ended as soon as they were started; "
                        "the lines above say why."
                    )
                if not self._stopping:
                    log.error("worker died, starting another: %d", pid)
                    self._start(slot)
            time.sleep(0.2)
        self._end()

    def _start(self, slot: _Slot) -> None:
        slot.started_at = time.monotonic()
        slot.ready, says_ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become_worker(slot, says_ready)
        os.close(says_ready)
        self._workers[pid] = slot

    def _become_worker(self, slot: _Slot, says_ready: int) -> NoReturn:
        status = 1
        try:
            os.close(self._kept_open)
            for other in self._slots:
                if other is not slot:
                    other.listeners.close()  # or it takes connections that nobody here accepts
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, who tells
            _run(
                _work(
                    self._settings,
                    slot.listeners,
                    self._parent_lives,
                    lambda: os.write(says_ready, b"."),
                )
            )
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
        for slot in self._slots:
            slot.listeners.close()
        for pid in self._workers:
            os.kill(pid, signal.SIGTERM)
        delay = self._settings.shutdown_delay.total_seconds()
        ending = GOODBYE_SECONDS + DRAIN_SECONDS + FINISH_SECONDS
        deadline = time.monotonic() + delay + ending + 1
        while self._workers and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.02)
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> list[tuple[int, _Slot, int]]:
        """Return the workers that have died, each with its slot and its status."""
        ended = [os.waitpid(pid, os.WNOHANG) for pid in self._workers]
        return [(pid, self._workers.pop(pid), status) for pid, status in ended if pid]


async def _work(
    settings: Settings,
    listeners: Listeners,
    parent_lives: int | None,
    when_ready: Callable[[], object],
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
    runner = Runner(
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
        sites = [web.SockSite(runner, each.dup(), backlog=BACKLOG) for each in listeners.requests]
        for site in sites:
            await site.start()
        if listeners.metrics:
            metrics = Runner(
                create_metrics_app(app), access_log=None, shutdown_timeout=GOODBYE_SECONDS
            )
            await metrics.setup()
            closing.push_async_callback(metrics.cleanup)
            for each in listeners.metrics:
                await web.SockSite(metrics, each.dup(), backlog=BACKLOG).start()
        log.info("listening on %s", settings.public_url)
        when_ready()
        await stop.wait()
        log.info("stopping")
        app[STOPPING].set()
        await asyncio.sleep(settings.shutdown_delay.total_seconds())
        for site in sites:
            await site.stop()
        for listener in listeners.requests:
            await _take_those_who_wait(runner, listener)
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
    async with open_services(settings, connections=settings.database_pool_size) as services:
        worker = make_worker(services)
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
