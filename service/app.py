"""Puts the service together. Nothing else makes a pool, a client or a use case."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from aiohttp import web

from service import database
from service.access_log import AccessLog
from service.api import keys
from service.api.middleware import around_every_request
from service.api.openapi import build_openapi
from service.api.providers import callback_url
from service.api.rate_limits import LOGIN, LOOKUP, REGISTER
from service.api.requests import LARGEST_BODY, answer_expectation
from service.api.routes import ROUTES
from service.cache import Cache, RedisServer
from service.database import Database
from service.domain.clock import Clock, utc_now
from service.domain.errors import DatabaseUnavailable
from service.domain.oauth import Client
from service.domain.scopes import Scope
from service.passwords import PasswordHasher
from service.providers import make_provider
from service.providers.http import open_http_client
from service.rate_limits import RateLimiter
from service.redis_connection import RedisAway
from service.settings import Settings
from service.tokens import AccessTokens, RefreshTokens
from service.use_cases.forgetting import Forgetting
from service.use_cases.housekeeping import Housekeeping
from service.use_cases.idempotency import Refusals
from service.use_cases.identities import Identities
from service.use_cases.oauth import OAuth, OAuthClients
from service.use_cases.referral_codes import ReferralCodes
from service.use_cases.referrals import Referrals
from service.use_cases.sessions import Sessions
from service.use_cases.users import Users

log = logging.getLogger(__name__)


def create_app(settings: Settings, clock: Clock = utc_now) -> web.Application:
    """Return the application; what it holds open lives from its startup to its cleanup."""
    access_log = AccessLog()
    app = web.Application(
        middlewares=[around_every_request(settings, access_log)], client_max_size=LARGEST_BODY
    )
    app[keys.ACCESS_LOG] = access_log
    app[keys.SETTINGS] = settings
    app[keys.RATE_LIMITS] = {
        REGISTER: settings.rate_limit_register,
        LOGIN: settings.rate_limit_login,
        LOOKUP: settings.rate_limit_lookup,
    }
    for route in ROUTES:
        route.kwargs["expect_handler"] = answer_expectation
    app.add_routes(ROUTES)
    build_openapi(app, settings)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(access_log.flush)
            await _open(app, settings, clock, stack)
            yield

    app.cleanup_ctx.append(resources)
    return app


@asynccontextmanager
async def users_alone(settings: Settings) -> AsyncIterator[Users]:
    """Yield the accounts for a command beside the service: what it changes, jobs make known."""
    async with AsyncExitStack() as stack:
        postgresql = await stack.enter_async_context(database.connect(settings.database_url, 1))
        redis = RedisServer(settings.redis_url)
        stack.push_async_callback(redis.close)
        hasher = PasswordHasher(settings.argon2, 1, 1)
        stack.callback(hasher.close)
        forgetting = Forgetting(postgresql, Cache(redis, utc_now), redis)
        yield _users(postgresql, forgetting, hasher, utc_now, settings)


@asynccontextmanager
async def clients_alone(database_url: str) -> AsyncIterator[OAuthClients]:
    """Yield the OAuth clients for a command beside the service."""
    async with database.connect(database_url, 1) as postgresql:
        yield OAuthClients(postgresql, utc_now)


def _users(
    postgresql: Database,
    forgetting: Forgetting,
    hasher: PasswordHasher,
    clock: Clock,
    settings: Settings,
) -> Users:
    return Users(
        postgresql,
        forgetting,
        hasher,
        clock,
        password_min_length=settings.password_min_length,
        hash_key=settings.hash_key,
    )


async def _open(
    app: web.Application, settings: Settings, clock: Clock, stack: AsyncExitStack
) -> None:
    """Open what the use cases need, and leave the closing to `stack`."""
    postgresql = await stack.enter_async_context(
        database.connect(settings.database_url, settings.database_pool_size)
    )
    redis = RedisServer(settings.redis_url)
    stack.push_async_callback(redis.close)
    hasher = PasswordHasher(settings.argon2, settings.hashing_threads, settings.hashing_queue)
    stack.callback(hasher.close)
    await hasher.warm_up()

    cache = Cache(redis, clock)
    forgetting = Forgetting(postgresql, cache, redis)
    app[keys.DATABASE] = postgresql
    app[keys.REDIS] = redis
    app[keys.HASHER] = hasher
    app[keys.RATE_LIMITER] = RateLimiter(redis, clock)
    app[keys.REFUSALS] = Refusals(postgresql, clock)
    app[keys.USERS] = _users(postgresql, forgetting, hasher, clock, settings)
    app[keys.SESSIONS] = Sessions(
        postgresql,
        cache,
        forgetting,
        hasher,
        AccessTokens(settings.signing_keys, settings.public_url, settings.access_token_ttl),
        RefreshTokens(settings.refresh_token_keys),
        clock,
        lifetime=settings.refresh_token_ttl,
        password_min_length=settings.password_min_length,
    )
    app[keys.OAUTH] = OAuth(
        postgresql, forgetting, app[keys.SESSIONS], clock, _built_in_clients(settings)
    )
    http = await stack.enter_async_context(open_http_client())
    app[keys.IDENTITIES] = Identities(
        postgresql,
        forgetting,
        app[keys.USERS],
        app[keys.SESSIONS],
        {
            of.name: make_provider(of, callback_url(settings, of.name), http, clock)
            for of in settings.providers
        },
        clock,
    )
    app[keys.REFERRAL_CODES] = ReferralCodes(postgresql, cache, forgetting, clock)
    app[keys.REFERRALS] = Referrals(postgresql)

    # Before the first request, so that what another process left to be forgotten is forgotten.
    with suppress(RedisAway, DatabaseUnavailable):
        await forgetting.work_off()
    for run in (forgetting.run, Housekeeping(postgresql, clock).run):
        task = asyncio.create_task(_for_ever(run))
        stack.push_async_callback(_cancel, task)


def _built_in_clients(settings: Settings) -> dict[str, Client]:
    """Return the clients that are part of the service: the page at /docs."""
    swagger_ui = Client(
        client_id="swagger-ui",
        name="API documentation",
        secret_hash=None,
        redirect_uris=(f"{settings.public_url}/docs/oauth2-redirect.html",),
        scopes=frozenset(Scope),
    )
    return {swagger_ui.client_id: swagger_ui}


async def _for_ever(run: Callable[[], Awaitable[None]]) -> None:
    """Run a background loop again when it fails of something nobody foresaw."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("a background loop failed and goes on")
            await asyncio.sleep(1)


async def _cancel(task: asyncio.Task[None]) -> None:
    # Again and again, because in Python 3.11 wait_for can swallow a cancellation.
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
