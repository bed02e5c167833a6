"""A worker process: serves on its sockets, or does jobs, until a signal ends it."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Final

from aiohttp import web

from service.api.http.app_keys import STOPPING
from service.api.http.runner import Runner
from service.app import create_app, create_metrics_app
from service.server.listeners import BACKLOG, Listeners
from service.services import make_worker, open_services
from service.settings.settings import Settings

GOODBYE_SECONDS: Final = 0.5
"""After SIGTERM, how long clients may still send requests on open connections."""
DRAIN_SECONDS: Final = 3.0
"""How long requests in flight may then take."""
IDLE_SECONDS: Final = 75.0
"""How long a connection may take for its first request's headers, and be idle afterwards: longer
than proxies keep theirs, which would otherwise send a request on one that is closing."""
LINGERING_SECONDS: Final = 2.0
"""How long the rest of a refused body is read, so that the client sees the answer."""
log = logging.getLogger(__name__)


async def serve(
    settings: Settings, listeners: Listeners, parent: int | None, when_ready: Callable[[], object]
) -> None:
    """Serve on the sockets until a signal comes, or `parent`, the end of a pipe, is closed.

    For `shutdown_delay` requests are still taken, while /health/ready is 503: what stands in front
    has to notice first. Then requests in flight may finish.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if parent is None:
        loop.add_signal_handler(signal.SIGINT, stop.set)
    else:
        loop.add_reader(parent, stop.set)
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
    # What is here to stay need not be examined by each collection: 4 µs of each look-up.
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
        log.info("listening on %s for %s", listeners.addresses, settings.public_url)
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
    with listener, suppress(OSError):  # the queue is empty
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(runner.server, connection)


async def work_off_jobs(settings: Settings) -> None:
    """Do jobs until SIGTERM or SIGINT, then let those in progress finish."""
    loop = asyncio.get_running_loop()
    async with open_services(settings, connections=settings.database_pool_size) as services:
        worker = make_worker(services)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop)
        log.info("running jobs")
        await worker.run()
        log.info("stopping")
