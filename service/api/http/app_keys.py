"""What handlers find on the application and on the request, by typed key."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from service.postgresql.database import Database
from service.redis.cache import RedisServer
from service.redis.password_attempts import Failures, KnownAddresses
from service.redis.rate_limits import RateLimiter, Window
from service.security.password_hashing import PasswordHasher
from service.settings.settings import RateLimit, Settings
from service.telemetry.access_log import AccessLog
from service.use_cases.account_changes import AccountChanges
from service.use_cases.claims import Claims
from service.use_cases.email_verification import EmailVerification
from service.use_cases.enrichment import Enrichments
from service.use_cases.idempotency import Refusals
from service.use_cases.identities import Identities
from service.use_cases.jobs import Jobs
from service.use_cases.mail_tokens import MailTokens
from service.use_cases.oauth import OAuth
from service.use_cases.referral_codes import ReferralCodes
from service.use_cases.referrals import Referrals
from service.use_cases.security_events import SecurityEvents
from service.use_cases.sessions import Sessions
from service.use_cases.users import Users

SETTINGS: Final = web.AppKey("SETTINGS", Settings)
DATABASE: Final = web.AppKey("DATABASE", Database)
REDIS: Final = web.AppKey("REDIS", RedisServer)
STOPPING: Final = web.AppKey("STOPPING", asyncio.Event)
"""Set when the process is told to end, while it still answers."""
JOBS: Final = web.AppKey("JOBS", Jobs)
HASHER: Final = web.AppKey("HASHER", PasswordHasher)
RATE_LIMITER: Final = web.AppKey("RATE_LIMITER", RateLimiter)
FAILURES: Final = web.AppKey("FAILURES", Failures)
KNOWN_ADDRESSES: Final = web.AppKey("KNOWN_ADDRESSES", KnownAddresses)
RATE_LIMITS: Final = web.AppKey("RATE_LIMITS", Mapping[str, RateLimit | None])
REFUSALS: Final = web.AppKey("REFUSALS", Refusals)
USERS: Final = web.AppKey("USERS", Users)
CLAIMS: Final = web.AppKey("CLAIMS", Claims)
MAIL_TOKENS: Final = web.AppKey("MAIL_TOKENS", MailTokens)
ACCOUNT_CHANGES: Final = web.AppKey("ACCOUNT_CHANGES", AccountChanges)
EMAIL_VERIFICATION: Final = web.AppKey("EMAIL_VERIFICATION", EmailVerification)
ENRICHMENTS: Final = web.AppKey("ENRICHMENTS", Enrichments)
IDENTITIES: Final = web.AppKey("IDENTITIES", Identities)
OAUTH: Final = web.AppKey("OAUTH", OAuth)
SESSIONS: Final = web.AppKey("SESSIONS", Sessions)
REFERRAL_CODES: Final = web.AppKey("REFERRAL_CODES", ReferralCodes)
REFERRALS: Final = web.AppKey("REFERRALS", Referrals)
SECURITY_EVENTS: Final = web.AppKey("SECURITY_EVENTS", SecurityEvents)

ACCESS_LOG: Final = web.AppKey("ACCESS_LOG", AccessLog)


@dataclass(slots=True)
class Context:
    """What is known of a request, besides what it says."""

    request_id: str
    user_id: str | None = None
    """Who the caller is, for the log."""
    windows: Sequence[Window] = ()
    """The rate limits that the request was counted in."""
    document: Any = None
    """The parsed JSON body."""


CONTEXT: Final = web.RequestKey("CONTEXT", Context)
