"""Puts the service together. Nothing else makes a pool, a client or a use case."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from service.api.health import METRICS, close_when_stopping, metrics_of
from service.api.http import app_keys
from service.api.http.load_shedding import LoadShedder
from service.api.http.middleware import around_every_request
from service.api.http.origin import current_origin
from service.api.http.problems import PARSER_LIMITS
from service.api.http.rate_limits import LOGIN, LOOKUP, MAIL, REGISTER, VERIFICATION, WRITE
from service.api.http.requests import LARGEST_BODY, answer_expectation
from service.api.identity_providers import callback_url
from service.api.mailbox import MAILBOX_ROUTES
from service.api.oauth.endpoints import show_metadata_of_host
from service.api.routes import ROUTES
from service.domain.clock import Clock, utc_now
from service.domain.errors import Unavailable
from service.domain.jobs import JobKind
from service.domain.oauth import GRANTS_FOR_USERS, Client
from service.domain.passwords import PasswordRules, names_in
from service.domain.scopes import Scope
from service.domain.security_events import Origin
from service.domain.sessions import SWAGGER_UI
from service.domain.users import allow_domains
from service.postgresql import database
from service.postgresql.database import Database
from service.providers import make_provider
from service.providers.clearbit import ClearbitEnricher
from service.providers.http import HttpClient, open_http_client
from service.providers.hunter import HunterEnricher, HunterVerifier
from service.redis.cache import Cache, RedisServer
from service.redis.connection import RedisAway
from service.redis.password_attempts import Failures, KnownAddresses
from service.redis.rate_limits import RateLimiter
from service.security.password_hashing import PasswordHasher
from service.security.tokens import AccessTokens, RefreshTokens
from service.settings.settings import EnrichmentSettings, Settings
from service.telemetry.access_log import AccessLog
from service.telemetry.metrics import measure_requests
from service.use_cases.account_changes import AccountChanges
from service.use_cases.cache_invalidation import CacheInvalidation
from service.use_cases.claims import Claims
from service.use_cases.email_verification import EmailVerification
from service.use_cases.enrichment import Enrichments
from service.use_cases.housekeeping import Housekeeping
from service.use_cases.idempotency import Refusals
from service.use_cases.identities import Identities
from service.use_cases.jobs import Handler, Jobs, Worker
from service.use_cases.mail_tokens import MailTokens
from service.use_cases.mails import Mails
from service.use_cases.oauth import OAuth
from service.use_cases.oauth_clients import OAuthClients
from service.use_cases.personal_data import PersonalData
from service.use_cases.referral_codes import ReferralCodes
from service.use_cases.referrals import Referrals
from service.use_cases.security_events import SecurityEvents
from service.use_cases.sessions import Sessions
from service.use_cases.users import Users

FINISH_SECONDS: Final = 3.0
"""How long jobs under way may take once the process is told to end."""
log = logging.getLogger(__name__)


def create_app(settings: Settings, clock: Clock = utc_now) -> web.Application:
    """Return the application; what it holds open lives from its startup to its cleanup."""
    allow_domains(settings.email_domains_allowed)
    access_log, stopping, load_shedder = AccessLog(measure_requests), asyncio.Event(), LoadShedder()
    app = web.Application(
        middlewares=[around_every_request(settings, access_log, stopping, load_shedder)],
        client_max_size=LARGEST_BODY,
        handler_args=PARSER_LIMITS,
    )
    app[app_keys.ACCESS_LOG] = access_log
    app[app_keys.SETTINGS] = settings
    app[app_keys.STOPPING] = stopping
    app.on_response_prepare.append(close_when_stopping)
    app[app_keys.RATE_LIMITS] = {
        REGISTER: settings.rate_limit_register,
        LOGIN: settings.rate_limit_login,
        LOOKUP: settings.rate_limit_lookup,
        MAIL: settings.rate_limit_mail,
        VERIFICATION: settings.rate_limit_verification,
        WRITE: settings.rate_limit_write,
    }
    app.add_routes(ROUTES)
    if settings.base_path:
        app.router.add_get(
            f"/.well-known/oauth-authorization-server{settings.base_path}",
            show_metadata_of_host,
            expect_handler=answer_expectation,
        )
    if settings.mail and isinstance(settings.mail.delivery, Path):
        app.add_routes(MAILBOX_ROUTES)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(access_log.flush)
            await _open(app, settings, clock, stack)
            stack.enter_context(load_shedder.watching())
            yield

    app.cleanup_ctx.append(resources)
    return app


def create_metrics_app(app: web.Application) -> web.Application:
    """Return an application that shows the metrics of `app`, for a port of their own."""
    settings = replace(app[app_keys.SETTINGS], cors_origins=frozenset())  # not for scripts
    surround = around_every_request(
        settings, app[app_keys.ACCESS_LOG], app[app_keys.STOPPING], LoadShedder()
    )
    alone = web.Application(
        middlewares=[surround], client_max_size=LARGEST_BODY, handler_args=PARSER_LIMITS
    )
    alone[app_keys.SETTINGS] = settings

    async def show(_: web.Request) -> web.Response:
        return await metrics_of(app)

    alone.router.add_get(METRICS, show)
    return alone


@asynccontextmanager
async def users_alone(settings: Settings) -> AsyncIterator[tuple[Users, PersonalData]]:
    """Yield the accounts, and all that is held about them, for a command beside the service."""
    allow_domains(settings.email_domains_allowed)
    async with AsyncExitStack() as stack:
        postgresql = await stack.enter_async_context(_connect(settings, 1))
        redis = RedisServer(settings.redis_url)
        stack.push_async_callback(redis.close)
        hasher = PasswordHasher(settings.argon2, 1, 1)
        stack.callback(hasher.close)
        invalidation = CacheInvalidation(postgresql, Cache(redis, utc_now), redis)
        jobs = _jobs(postgresql, settings, utc_now)
        events = SecurityEvents(postgresql, utc_now, Origin, settings.hash_key)
        users = _users(postgresql, invalidation, jobs, hasher, events, utc_now, settings)
        yield users, PersonalData(postgresql, events, utc_now)
        await _make_known(invalidation)


@asynccontextmanager
async def clients_alone(
    database_url: str, prepared_statements: bool, redis_url: str | None
) -> AsyncIterator[OAuthClients]:
    """Yield the OAuth clients for a command beside the service."""
    async with AsyncExitStack() as stack:
        postgresql = await stack.enter_async_context(
            database.connect(database_url, 1, prepared_statements)
        )
        yield OAuthClients(postgresql, utc_now)
        if redis_url is not None:
            redis = RedisServer(redis_url)
            stack.push_async_callback(redis.close)
            await _make_known(CacheInvalidation(postgresql, Cache(redis, utc_now), redis))


async def _make_known(invalidation: CacheInvalidation) -> None:
    """Have Redis forget what a command has made old; if it cannot, a running service will."""
    with suppress(RedisAway, Unavailable):
        await invalidation.work_off()


@asynccontextmanager
async def jobs_alone(database_url: str, prepared_statements: bool) -> AsyncIterator[Jobs]:
    """Yield the jobs for a command beside the service."""
    async with database.connect(database_url, 1, prepared_statements) as postgresql:
        yield Jobs(postgresql, (), utc_now)


@asynccontextmanager
async def worker_alone(settings: Settings) -> AsyncIterator[Worker]:
    """Yield a worker that does jobs without serving requests."""
    allow_domains(settings.email_domains_allowed)
    async with AsyncExitStack() as stack:
        postgresql = await stack.enter_async_context(
            _connect(settings, settings.database_pool_size)
        )
        redis = RedisServer(settings.redis_url)
        stack.push_async_callback(redis.close)
        http = await stack.enter_async_context(open_http_client())
        verification = _verification(postgresql, Cache(redis, utc_now), http, settings, utc_now)
        enrichments = _enrichments(postgresql, http, settings, utc_now)
        yield _worker(postgresql, verification, enrichments, settings, utc_now)


def _connect(
    settings: Settings, size: int, replica_url: str | None = None
) -> AbstractAsyncContextManager[Database]:
    return database.connect(
        settings.database_url, size, settings.database_prepared_statements, replica_url
    )


def _password_rules(settings: Settings) -> PasswordRules:
    host = urlsplit(settings.public_url).hostname or ""
    return PasswordRules(
        min_length=settings.password_min_length, names=names_in(settings.service_name, host)
    )


def _jobs(postgresql: Database, settings: Settings, clock: Clock) -> Jobs:
    doers = {
        JobKind.MAIL: settings.mail,
        JobKind.VERIFY_EMAIL: settings.hunter,
        JobKind.ENRICH: settings.enrichment,
    }
    return Jobs(postgresql, [kind for kind, doer in doers.items() if doer is not None], clock)


def _verification(
    postgresql: Database, cache: Cache, http: HttpClient, settings: Settings, clock: Clock
) -> EmailVerification:
    return EmailVerification(
        postgresql,
        cache,
        HunterVerifier(settings.hunter, http) if settings.hunter else None,
        clock,
        mail_is_sent=settings.mail is not None,
        hash_key=settings.hash_key,
    )


def _enrichments(
    postgresql: Database, http: HttpClient, settings: Settings, clock: Clock
) -> Enrichments:
    match settings.enrichment:
        case None:
            return Enrichments(postgresql, None)
        case EnrichmentSettings(provider="clearbit"):
            return Enrichments(
                postgresql, ClearbitEnricher(settings.enrichment, http, clock).enrich
            )
        case _:
            return Enrichments(postgresql, HunterEnricher(settings.enrichment, http, clock).enrich)


def _worker(
    postgresql: Database,
    verification: EmailVerification,
    enrichments: Enrichments,
    settings: Settings,
    clock: Clock,
) -> Worker:
    handlers: dict[JobKind, Handler] = {}
    if settings.hunter:
        handlers[JobKind.VERIFY_EMAIL] = verification.verify
    if settings.enrichment:
        handlers[JobKind.ENRICH] = enrichments.fetch
    if settings.mail:
        # Here, because its libraries take a thirtieth of each start.
        from service.providers.mail import Mailer

        mails = Mails(
            postgresql,
            Mailer(settings.mail, settings.service_name),
            clock,
            service_name=settings.service_name,
            app_url=settings.mail.app_url,
            hash_key=settings.hash_key,
        )
        handlers[JobKind.MAIL] = mails.deliver
    return Worker(postgresql, handlers, clock)


def _users(
    postgresql: Database,
    invalidation: CacheInvalidation,
    jobs: Jobs,
    hasher: PasswordHasher,
    events: SecurityEvents,
    clock: Clock,
    settings: Settings,
) -> Users:
    return Users(
        postgresql,
        invalidation,
        jobs,
        hasher,
        events,
        clock,
        password_rules=_password_rules(settings),
        hash_key=settings.hash_key,
        confirmation_required=settings.confirmation_required,
    )


async def _open(
    app: web.Application, settings: Settings, clock: Clock, stack: AsyncExitStack
) -> None:
    """Open what the use cases need, and leave the closing to `stack`."""
    postgresql = await stack.enter_async_context(
        _connect(settings, settings.database_pool_size, settings.database_replica_url)
    )
    redis = RedisServer(settings.redis_url)
    stack.push_async_callback(redis.close)
    hasher = PasswordHasher(settings.argon2, settings.hashing_threads, settings.hashing_queue)
    stack.callback(hasher.close)
    hasher.warm_up()

    # With another EMAIL_CONFIRMATION other codes are live.
    cache = Cache(redis, clock, b"c" if settings.confirmation_required else b"")
    invalidation = CacheInvalidation(postgresql, cache, redis)
    jobs = _jobs(postgresql, settings, clock)
    events = SecurityEvents(postgresql, clock, current_origin, settings.hash_key)
    app[app_keys.DATABASE] = postgresql
    app[app_keys.JOBS] = jobs
    app[app_keys.REDIS] = redis
    app[app_keys.HASHER] = hasher
    app[app_keys.RATE_LIMITER] = RateLimiter(redis, clock, settings.hash_key)
    app[app_keys.FAILURES] = Failures(redis, clock, settings.hash_key)
    app[app_keys.KNOWN_ADDRESSES] = KnownAddresses(redis, clock, settings.hash_key)
    app[app_keys.REFUSALS] = Refusals(postgresql, clock)
    app[app_keys.USERS] = _users(postgresql, invalidation, jobs, hasher, events, clock, settings)
    app[app_keys.CLAIMS] = Claims(
        postgresql,
        jobs,
        app[app_keys.USERS],
        hasher,
        clock,
        password_rules=_password_rules(settings),
    )
    app[app_keys.SESSIONS] = Sessions(
        postgresql,
        cache,
        invalidation,
        jobs,
        hasher,
        AccessTokens(settings.signing_keys, settings.public_url, settings.access_token_ttl),
        RefreshTokens(settings.refresh_token_keys),
        events,
        clock,
        lifetime=settings.refresh_token_ttl,
        password_rules=_password_rules(settings),
        confirmation_required=settings.confirmation_required,
    )
    app[app_keys.OAUTH] = OAuth(
        postgresql, invalidation, app[app_keys.SESSIONS], events, clock, _built_in_clients(settings)
    )
    http = await stack.enter_async_context(open_http_client())
    app[app_keys.IDENTITIES] = Identities(
        postgresql,
        invalidation,
        jobs,
        app[app_keys.USERS],
        app[app_keys.CLAIMS],
        app[app_keys.SESSIONS],
        {
            of.name: make_provider(of, callback_url(settings, of.name), http, clock)
            for of in settings.providers
        },
        events,
        clock,
        confirmation_required=settings.confirmation_required,
    )
    app[app_keys.MAIL_TOKENS] = MailTokens(
        postgresql,
        invalidation,
        jobs,
        app[app_keys.USERS],
        app[app_keys.CLAIMS],
        hasher,
        events,
        clock,
        password_rules=_password_rules(settings),
    )
    app[app_keys.ACCOUNT_CHANGES] = AccountChanges(
        postgresql, invalidation, jobs, app[app_keys.USERS], events, clock
    )
    app[app_keys.EMAIL_VERIFICATION] = _verification(postgresql, cache, http, settings, clock)
    app[app_keys.ENRICHMENTS] = _enrichments(postgresql, http, settings, clock)
    app[app_keys.REFERRAL_CODES] = ReferralCodes(
        postgresql, cache, invalidation, clock, confirmed_only=settings.confirmation_required
    )
    app[app_keys.REFERRALS] = Referrals(postgresql)
    app[app_keys.SECURITY_EVENTS] = events

    # Before the first request, so that what another process left to be forgotten is forgotten.
    await _make_known(invalidation)
    for run in (
        invalidation.run,
        Housekeeping(postgresql, clock).run,
        app[app_keys.KNOWN_ADDRESSES].sweep,
    ):
        task = asyncio.create_task(_for_ever(run))
        stack.push_async_callback(_cancel, task)
    if settings.serve_jobs:
        worker = _worker(
            postgresql, app[app_keys.EMAIL_VERIFICATION], app[app_keys.ENRICHMENTS], settings, clock
        )
        task = asyncio.create_task(_for_ever(worker.run))
        stack.push_async_callback(_finish, worker, task)


def _built_in_clients(settings: Settings) -> dict[str, Client]:
    """Return the clients that are part of the service: the page at /docs."""
    swagger_ui = Client(
        client_id=SWAGGER_UI,
        name="API documentation",
        secret_hash=None,
        redirect_uris=(f"{settings.public_url}/docs/oauth2-redirect.html",),
        scopes=frozenset(Scope),
        grants=GRANTS_FOR_USERS,
    )
    return {swagger_ui.client_id: swagger_ui}


async def _for_ever(run: Callable[[], Awaitable[None]]) -> None:
    """Run a background loop again when it fails of something nobody foresaw."""
    while True:
        try:
            return await run()
        except Exception:
            log.exception("a background loop failed and goes on")
            await asyncio.sleep(1)


async def _finish(worker: Worker, task: asyncio.Task[None]) -> None:
    """Let the jobs under way end: one that is broken off is done twice."""
    worker.stop()
    await asyncio.wait([task], timeout=FINISH_SECONDS)
    await _cancel(task)


async def _cancel(task: asyncio.Task[None]) -> None:
    # Again and again, because in Python 3.11 wait_for can swallow a cancellation.
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
