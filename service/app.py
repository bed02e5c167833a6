"""The application: its routes, what it holds open, what runs in the background."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from aiohttp import web

from service.api.health import METRICS, metrics_of
from service.api.http import app_keys
from service.api.http.client_address import CLIENT_ADDRESSES, ClientAddresses
from service.api.http.load_shedding import LoadShedder
from service.api.http.origin import current_origin
from service.api.http.rate_limits import CLIENT, LOGIN, LOOKUP, MAIL, REGISTER, VERIFICATION, WRITE
from service.api.http.requests import LARGEST_BODY
from service.api.http.runner import PARSER_LIMITS
from service.api.mailbox import MAILBOX_ROUTES
from service.api.oauth.metadata import show_metadata_of_host
from service.api.routes import ROUTES
from service.domain.clock import Clock, utc_now
from service.services import Services, invalidate, make_worker, open_services
from service.settings.settings import Settings
from service.telemetry.access_log import AccessLog
from service.telemetry.metrics import measure_requests
from service.use_cases.jobs import Worker

FINISH_SECONDS: Final = 3.0
"""How long jobs under way may take once the process is stopping."""
log = logging.getLogger(__name__)


def create_app(settings: Settings, clock: Clock = utc_now) -> web.Application:
    """Return the application, which a Runner puts behind its front.

    What it holds open lives from its startup to its cleanup.
    """
    app = web.Application(client_max_size=LARGEST_BODY, handler_args=PARSER_LIMITS)
    app[app_keys.SETTINGS] = settings
    app[CLIENT_ADDRESSES] = ClientAddresses(settings.trusted_proxies)
    app[app_keys.ACCESS_LOG] = access_log = AccessLog(measure_requests)
    app[app_keys.LOAD_SHEDDER] = load_shedder = LoadShedder()
    app[app_keys.STOPPING] = asyncio.Event()
    app[app_keys.RATE_LIMITS] = {
        REGISTER: settings.rate_limit_register,
        LOGIN: settings.rate_limit_login,
        LOOKUP: settings.rate_limit_lookup,
        MAIL: settings.rate_limit_mail,
        VERIFICATION: settings.rate_limit_verification,
        WRITE: settings.rate_limit_write,
        CLIENT: settings.rate_limit_client,
    }
    app.add_routes(ROUTES)
    if settings.base_path:
        app.router.add_get(
            f"/.well-known/oauth-authorization-server{settings.base_path}", show_metadata_of_host
        )
    if settings.mail and isinstance(settings.mail.delivery, Path):
        app.add_routes(MAILBOX_ROUTES)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(access_log.flush)
            app[app_keys.SERVICES] = services = await stack.enter_async_context(
                open_services(
                    settings, clock, current_origin, connections=settings.database_pool_size
                )
            )
            services.hasher.warm_up()
            # Before the first request, in case another process left work behind.
            await invalidate(services.cache_invalidation)
            _run_in_background(services, stack)
            stack.enter_context(load_shedder.watching())
            yield

    app.cleanup_ctx.append(resources)
    return app


def create_metrics_app(app: web.Application) -> web.Application:
    """Return an application that shows the metrics of `app` on a port of its own."""
    alone = web.Application(client_max_size=LARGEST_BODY, handler_args=PARSER_LIMITS)
    # Not for scripts of any origin.
    alone[app_keys.SETTINGS] = replace(app[app_keys.SETTINGS], cors_origins=frozenset())
    alone[app_keys.ACCESS_LOG] = app[app_keys.ACCESS_LOG]
    alone[app_keys.LOAD_SHEDDER] = LoadShedder()
    alone[app_keys.STOPPING] = app[app_keys.STOPPING]

    async def show(_: web.Request) -> web.Response:
        return await metrics_of(app)

    alone.router.add_get(METRICS, show)
    return alone


def _run_in_background(services: Services, stack: AsyncExitStack) -> None:
    for run in (
        services.cache_invalidation.run,
        services.housekeeping.run,
        services.ledger_check.run,
        services.sweeps.run,
    ):
        task = asyncio.create_task(_for_ever(run))
        stack.push_async_callback(_cancel, task)
    if services.settings.serve_jobs:
        worker = make_worker(services)
        task = asyncio.create_task(_for_ever(worker.run))
        stack.push_async_callback(_finish, worker, task)


async def _for_ever(run: Callable[[], Awaitable[None]]) -> None:
    """Restart a background loop that fails with an unforeseen error."""
    while True:
        try:
            return await run()
        except Exception:
            log.exception("background task crashed; restarting")
            await asyncio.sleep(1)


async def _finish(worker: Worker, task: asyncio.Task[None]) -> None:
    """Let the jobs under way finish: an interrupted one is done twice."""
    worker.stop()
    await asyncio.wait([task], timeout=FINISH_SECONDS)
    await _cancel(task)


async def _cancel(task: asyncio.Task[None]) -> None:
    # Repeatedly, because wait_for can swallow a cancellation in Python 3.11.
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
