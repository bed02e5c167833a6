"""Every use case, built once from opened resources: for the application, workers and commands."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

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
from service.redis import RedisAway
from service.redis.cache import Cache
from service.redis.client import RedisClient
from service.redis.password_attempts import Failures, KnownAddresses
from service.redis.rate_limits import RateLimiter
from service.security.password_hashing import PasswordHasher
from service.security.tokens import AccessTokens, RefreshTokens
from service.settings.settings import EnrichmentSettings, Settings
from service.use_cases.account_changes import AccountChanges
from service.use_cases.cache_invalidation import CacheInvalidation
from service.use_cases.claims import Claims
from service.use_cases.email_verification import EmailVerification
from service.use_cases.enrichment import Enrich, Enrichments
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

CALLBACK_PATH: Final = "/api/v1/auth/providers/{provider}/callback"
"""Where issuers send browsers back to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The use cases, and what handlers and background tasks need beside them."""

    settings: Settings
    clock: Clock
    database: Database
    redis: RedisClient
    hasher: PasswordHasher
    rate_limiter: RateLimiter
    failures: Failures
    known_addresses: KnownAddresses
    jobs: Jobs
    cache_invalidation: CacheInvalidation
    housekeeping: Housekeeping
    refusals: Refusals
    security_events: SecurityEvents
    users: Users
    claims: Claims
    sessions: Sessions
    oauth: OAuth
    identities: Identities
    mail_tokens: MailTokens
    account_changes: AccountChanges
    email_verification: EmailVerification
    enrichments: Enrichments
    referral_codes: ReferralCodes
    referrals: Referrals
    personal_data: PersonalData


@asynccontextmanager
async def open_services(
    settings: Settings,
    clock: Clock = utc_now,
    origin: Callable[[], Origin] = Origin,
    *,
    connections: int = 1,
) -> AsyncIterator[Services]:
    """Open what the use cases need, with at most so many connections to PostgreSQL, and close it.

    `origin` says who is behind the present call; for a command nobody is.
    """
    allow_domains(settings.email_domains_allowed)
    async with AsyncExitStack() as stack:
        postgresql = await stack.enter_async_context(
            database.connect(
                settings.database_url,
                connections,
                settings.database_prepared_statements,
                settings.database_replica_url,
            )
        )
        redis = RedisClient(settings.redis_url)
        stack.push_async_callback(redis.close)
        hasher = PasswordHasher(settings.argon2, settings.hashing_threads, settings.hashing_queue)
        stack.callback(hasher.close)
        http = await stack.enter_async_context(open_http_client())
        yield _build(settings, clock, origin, postgresql, redis, hasher, http)


def _build(
    settings: Settings,
    clock: Clock,
    origin: Callable[[], Origin],
    postgresql: Database,
    redis: RedisClient,
    hasher: PasswordHasher,
    http: HttpClient,
) -> Services:
    confirmed_only, hash_key = settings.confirmation_required, settings.hash_key
    password_rules = _password_rules(settings)
    # With another EMAIL_CONFIRMATION other codes are live.
    cache = Cache(redis, clock, b"c" if confirmed_only else b"")
    invalidation = CacheInvalidation(postgresql, cache, redis)
    jobs = Jobs(postgresql, _kinds_done(settings), clock)
    events = SecurityEvents(postgresql, clock, origin, hash_key)
    users = Users(
        postgresql,
        invalidation,
        jobs,
        hasher,
        events,
        clock,
        password_rules=password_rules,
        hash_key=hash_key,
        confirmation_required=confirmed_only,
    )
    claims = Claims(postgresql, jobs, users, hasher, clock, password_rules=password_rules)
    sessions = Sessions(
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
        password_rules=password_rules,
        confirmation_required=confirmed_only,
    )
    providers = {
        of.name: make_provider(
            of, f"{settings.public_url}{CALLBACK_PATH.format(provider=of.name)}", http, clock
        )
        for of in settings.providers
    }
    return Services(
        settings=settings,
        clock=clock,
        database=postgresql,
        redis=redis,
        hasher=hasher,
        rate_limiter=RateLimiter(redis, clock, hash_key),
        failures=Failures(redis, clock, hash_key),
        known_addresses=KnownAddresses(redis, clock, hash_key),
        jobs=jobs,
        cache_invalidation=invalidation,
        housekeeping=Housekeeping(postgresql, clock),
        refusals=Refusals(postgresql, clock),
        security_events=events,
        users=users,
        claims=claims,
        sessions=sessions,
        oauth=OAuth(postgresql, invalidation, sessions, events, clock, _built_in_clients(settings)),
        identities=Identities(
            postgresql,
            invalidation,
            jobs,
            users,
            claims,
            sessions,
            providers,
            events,
            clock,
            confirmation_required=confirmed_only,
        ),
        mail_tokens=MailTokens(
            postgresql,
            invalidation,
            jobs,
            users,
            claims,
            hasher,
            events,
            clock,
            password_rules=password_rules,
        ),
        account_changes=AccountChanges(postgresql, invalidation, jobs, users, events, clock),
        email_verification=EmailVerification(
            postgresql,
            cache,
            HunterVerifier(settings.hunter, http) if settings.hunter else None,
            clock,
            mail_is_sent=settings.mail is not None,
            hash_key=hash_key,
        ),
        enrichments=Enrichments(postgresql, _enrich(settings.enrichment, http, clock)),
        referral_codes=ReferralCodes(
            postgresql, cache, invalidation, clock, confirmed_only=confirmed_only
        ),
        referrals=Referrals(postgresql),
        personal_data=PersonalData(postgresql, events, clock),
    )


def make_worker(services: Services) -> Worker:
    """Return what does the jobs of the kinds that the settings name somebody for."""
    settings = services.settings
    handlers: dict[JobKind, Handler] = {}
    if settings.hunter:
        handlers[JobKind.VERIFY_EMAIL] = services.email_verification.verify
    if settings.enrichment:
        handlers[JobKind.ENRICH] = services.enrichments.fetch
    if settings.mail:
        # Here, because its libraries take a thirtieth of each start.
        from service.providers.mail import Mailer

        mails = Mails(
            services.database,
            Mailer(settings.mail, settings.service_name),
            services.clock,
            service_name=settings.service_name,
            app_url=settings.mail.app_url,
            hash_key=settings.hash_key,
        )
        handlers[JobKind.MAIL] = mails.deliver
    return Worker(services.database, handlers, services.clock)


@asynccontextmanager
async def open_clients(
    database_url: str, prepared_statements: bool, redis_url: str | None
) -> AsyncIterator[OAuthClients]:
    """Yield the OAuth clients for a command, which needs no other settings than these."""
    async with AsyncExitStack() as stack:
        postgresql = await stack.enter_async_context(
            database.connect(database_url, 1, prepared_statements)
        )
        yield OAuthClients(postgresql, utc_now)
        if redis_url is not None:
            redis = RedisClient(redis_url)
            stack.push_async_callback(redis.close)
            await invalidate(CacheInvalidation(postgresql, Cache(redis, utc_now), redis))


@asynccontextmanager
async def open_jobs(database_url: str, prepared_statements: bool) -> AsyncIterator[Jobs]:
    """Yield the jobs for a command, which needs no other settings than these."""
    async with database.connect(database_url, 1, prepared_statements) as postgresql:
        yield Jobs(postgresql, (), utc_now)


async def invalidate(invalidation: CacheInvalidation) -> None:
    """Have Redis forget what is no longer true; if it cannot, a running service will."""
    with suppress(RedisAway, Unavailable):
        await invalidation.work_off()


def _password_rules(settings: Settings) -> PasswordRules:
    host = urlsplit(settings.public_url).hostname or ""
    return PasswordRules(
        min_length=settings.password_min_length, names=names_in(settings.service_name, host)
    )


def _kinds_done(settings: Settings) -> list[JobKind]:
    """Return the kinds of jobs that somebody does: no other is worth planning."""
    doers = {
        JobKind.MAIL: settings.mail,
        JobKind.VERIFY_EMAIL: settings.hunter,
        JobKind.ENRICH: settings.enrichment,
    }
    return [kind for kind, doer in doers.items() if doer is not None]


def _enrich(settings: EnrichmentSettings | None, http: HttpClient, clock: Clock) -> Enrich | None:
    match settings:
        case None:
            return None
        case EnrichmentSettings(provider="clearbit"):
            return ClearbitEnricher(settings, http, clock).enrich
        case _:
            return HunterEnricher(settings, http, clock).enrich


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
