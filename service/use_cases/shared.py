"""What most use cases work with: one record, built once by services.py."""

from dataclasses import dataclass

from service.domain.clock import Clock
from service.domain.passwords import PasswordRules
from service.postgresql.database import Database
from service.redis.password_attempts import known_addresses_key
from service.security.password_hashing import PasswordHasher
from service.use_cases.cache_invalidation import CacheInvalidation, code_key
from service.use_cases.jobs import Jobs
from service.use_cases.referrals import Referrals
from service.use_cases.security_events import SecurityEvents


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The collaborators and settings that most use cases share."""

    database: Database
    clock: Clock
    jobs: Jobs
    invalidation: CacheInvalidation
    events: SecurityEvents
    referrals: Referrals
    hasher: PasswordHasher
    password_rules: PasswordRules
    hash_key: bytes
    confirmation_required: bool

    def keys_of_email(self, email_key: str) -> list[str]:
        """Return the cache keys that become old when an account loses the email address."""
        return [code_key(email_key), known_addresses_key(self.hash_key, email_key)]
