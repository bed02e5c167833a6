"""Every use case, built once from opened resources: for the application, workers and commands."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from service.domain.clock import Clock, utc_now
from service.domain.emails import allow_domains
from service.domain.errors import Unavailable
from service.domain.jobs import JobKind
from service.domain.oauth import GRANTS_FOR_USERS, Client
from service.domain.passwords import PasswordRules, names_in
from service.domain.scopes import Scope
from service.domain.security_events import Origin
from service.domain.sessions import SWAGGER_UI
from service.domain.webhook_deliveries import Secrets
from service.postgresql import database
from service.postgresql.database import Database
from service.providers.enrichment import Enricher
from service.providers.http import HttpClient, open_http_client
from service.providers.hunter import HunterVerifier
from service.providers.identity import make_provider
from service.providers.webhooks import WebhookSender, open_webhook_sender
from service.redis import RedisAway
from service.redis.cache import Cache
from service.redis.client import RedisClient
from service.redis.password_attempts import Failures, KnownAddresses
from service.redis.rate_limits import RateLimiter
from service.security.access_tokens import AccessTokens
from service.security.password_hashing import PasswordHasher
from service.security.refresh_tokens import RefreshTokens
from service.settings.settings import DatabaseSettings, ServerSettings, Settings
from service.use_cases.account_changes import AccountChanges
from service.use_cases.cache_invalidation import CacheInvalidation
from service.use_cases.claims import Claims
from service.use_cases.decisions import Decisions
from service.use_cases.email_verification import EmailVerification
from service.use_cases.enrichment import Enrichments
from service.use_cases.events import Events
from service.use_cases.exports import Exports
from service.use_cases.housekeeping import Housekeeping
from service.use_cases.idempotency import Refusals
from service.use_cases.identities import Identities
from service.use_cases.jobs import Handler, Jobs, Worker
from service.use_cases.ledger import Ledger
from service.use_cases.ledger_check import LedgerCheck
from service.use_cases.links import Links
from service.use_cases.mail_tokens import MailTokens
from service.use_cases.mails import Mails
from service.use_cases.oauth import OAuth
from service.use_cases.oauth_clients import OAuthClients
from service.use_cases.participants import Participants
from service.use_cases.passwords import Passwords
from service.use_cases.personal_data import PersonalData
from service.use_cases.programmes import Programmes
from service.use_cases.referral_codes import ReferralCodes
from service.use_cases.referrals import Referrals
from service.use_cases.rewards import Rewards
from service.use_cases.security_events import SecurityEvents
from service.use_cases.sessions import Sessions
from service.use_cases.shared import Shared
from service.use_cases.sign_ups import SignUps
from service.use_cases.sweeps import Sweeps
from service.use_cases.users import Users
from service.use_cases.webhook_deliveries import WebhookDeliveries
from service.use_cases.webhooks import Webhooks

CALLBACK_PATH: Final = "/api/v1/auth/providers/{provider}/callback"
"""Where issuers send browsers back to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The use cases, and what else handlers and background tasks need."""

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
    sweeps: Sweeps
    exports: Exports
    ledger: Ledger
    ledger_check: LedgerCheck
    refusals: Refusals
    security_events: SecurityEvents
    users: Users
    passwords: Passwords
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
    programmes: Programmes
    participants: Participants
    sign_ups: SignUps
    links: Links
    events: Events
    personal_data: PersonalData
    webhooks: Webhooks
    webhook_deliveries: WebhookDeliveries


@asynccontextmanager
async def open_services(
    settings: Settings,
    clock: Clock = utc_now,
    origin: Callable[[], Origin] = Origin,
    *,
    connections: int = 1,
) -> AsyncIterator[Services]:
    """Open what the use cases need, with at most `connections` to PostgreSQL, and close it.

    `origin` returns where the current request came from; commands have none.
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
        sender = await stack.enter_async_context(open_webhook_sender(settings.webhook_networks))
        yield _build(settings, clock, origin, postgresql, redis, hasher, http, sender)


def _build(
    settings: Settings,
    clock: Clock,
    origin: Callable[[], Origin],
    postgresql: Database,
    redis: RedisClient,
    hasher: PasswordHasher,
    http: HttpClient,
    sender: WebhookSender,
) -> Services:
    # With another EMAIL_CONFIRMATION other codes are live.
    cache = Cache(redis, clock, b"c" if settings.confirmation_required else b"")
    invalidation = CacheInvalidation(postgresql, cache, redis)
    programmes = Programmes(postgresql, invalidation, clock)
    rewards = Rewards(programmes)
    referrals = Referrals(postgresql, programmes, Decisions(rewards), clock)
    shared = Shared(
        database=postgresql,
        clock=clock,
        jobs=Jobs(postgresql, _kinds_done(settings), clock),
        invalidation=invalidation,
        events=SecurityEvents(postgresql, clock, origin, settings.hash_key),
        referrals=referrals,
        hasher=hasher,
        password_rules=PasswordRules(
            min_length=settings.password_min_length,
            names=names_in(settings.service_name, urlsplit(settings.public_url).hostname or ""),
        ),
        hash_key=settings.hash_key,
        confirmation_required=settings.confirmation_required,
    )
    secrets = Secrets(settings.hash_key)
    codes = ReferralCodes(shared, cache)
    participants = Participants(shared, programmes, codes)
    users = Users(shared)
    claims = Claims(shared, users)
    sessions = Sessions(
        shared,
        cache,
        AccessTokens(settings.signing_keys, settings.public_url, settings.access_token_ttl),
        RefreshTokens(settings.refresh_token_keys),
        settings.refresh_token_ttl,
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
        rate_limiter=RateLimiter(redis, clock, settings.hash_key),
        failures=Failures(redis, clock, settings.hash_key),
        known_addresses=KnownAddresses(redis, clock, settings.hash_key),
        jobs=shared.jobs,
        cache_invalidation=shared.invalidation,
        housekeeping=Housekeeping(postgresql, clock, settings.events_kept),
        exports=Exports(postgresql),
        ledger=Ledger(shared, programmes, participants),
        ledger_check=LedgerCheck(postgresql),
        sweeps=Sweeps(postgresql, referrals, rewards, clock),
        refusals=Refusals(postgresql, clock),
        security_events=shared.events,
        users=users,
        passwords=Passwords(shared),
        claims=claims,
        sessions=sessions,
        oauth=OAuth(shared, sessions, _built_in_clients(settings)),
        identities=Identities(shared, users, claims, sessions, providers),
        mail_tokens=MailTokens(shared, claims),
        account_changes=AccountChanges(shared),
        email_verification=EmailVerification(
            shared,
            cache,
            HunterVerifier(settings.hunter, http) if settings.hunter else None,
            mail_is_sent=settings.mail is not None,
        ),
        enrichments=Enrichments(
            postgresql, Enricher(settings.enrichment, http, clock) if settings.enrichment else None
        ),
        referral_codes=codes,
        referrals=referrals,
        programmes=programmes,
        participants=participants,
        sign_ups=SignUps(shared, participants),
        links=Links(shared, programmes),
        events=Events(shared, programmes, participants),
        personal_data=PersonalData(shared),
        webhooks=Webhooks(postgresql, secrets, settings.webhook_networks, clock),
        webhook_deliveries=WebhookDeliveries(postgresql, shared.jobs, secrets, sender, clock),
    )


def make_worker(services: Services) -> Worker:
    """Return the worker for webhooks, and the kinds of jobs that the settings provide for."""
    settings = services.settings
    handlers: dict[JobKind, Handler] = {}
    if settings.hunter:
        handlers[JobKind.VERIFY_EMAIL] = services.email_verification.verify_account
    if settings.enrichment:
        handlers[JobKind.ENRICH] = services.enrichments.fetch
    if settings.mail:
        # Here, because only a worker that sends mails needs its library.
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
    return Worker(services.database, handlers, services.clock, [services.webhook_deliveries.run])


@asynccontextmanager
async def open_clients(settings: DatabaseSettings) -> AsyncIterator[OAuthClients]:
    """Yield the OAuth clients for a command, which needs no other settings than these."""
    async with AsyncExitStack() as stack:
        postgresql = await stack.enter_async_context(
            database.connect(settings.database_url, 1, settings.database_prepared_statements)
        )
        yield OAuthClients(postgresql, utc_now)
        if isinstance(settings, ServerSettings):
            redis = RedisClient(settings.redis_url)
            stack.push_async_callback(redis.close)
            await invalidate(CacheInvalidation(postgresql, Cache(redis, utc_now), redis))


async def invalidate(invalidation: CacheInvalidation) -> None:
    """Make Redis forget what is outdated; if it is away, a running service will do so later."""
    with suppress(RedisAway, Unavailable):
        await invalidation.work_off()


def _kinds_done(settings: Settings) -> list[JobKind]:
    """Return the kinds of jobs that the settings provide for: no others are planned."""
    doers = {
        JobKind.MAIL: settings.mail,
        JobKind.VERIFY_EMAIL: settings.hunter,
        JobKind.ENRICH: settings.enrichment,
    }
    return [kind for kind, doer in doers.items() if doer is not None]


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
