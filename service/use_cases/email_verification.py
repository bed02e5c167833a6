"""Verifying email addresses: locally at once, by Hunter in the background; it blocks nobody."""

import logging
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from service.domain.email_verification import LOCAL, Verdict, Verification, verify_locally
from service.domain.emails import Email, parse_email
from service.domain.errors import ProviderUnavailable
from service.domain.jobs import Job, RetryLater, poll_again
from service.domain.keyed_hashes import keyed_hash
from service.providers.hunter import SOURCE, HunterVerifier
from service.redis.cache import Cache, Entry
from service.use_cases.shared import Shared

KEPT_FOR: Final = timedelta(days=1)
"""How long a verdict is reused: Hunter charges for each."""
log = logging.getLogger(__name__)


class EmailVerification:
    """Verdicts on email addresses. If the provider fails, the verdict is UNKNOWN."""

    def __init__(
        self, shared: Shared, cache: Cache, verifier: HunterVerifier | None, *, mail_is_sent: bool
    ) -> None:
        self._database = shared.database
        self._cache = cache
        self._verifier = verifier
        self._clock = shared.clock
        self._mail_is_sent = mail_is_sent
        self._hash_key = shared.hash_key

    async def check(self, text: str) -> Verification:
        """Return the verdict on a text that may be an email address; it may be up to a day old."""
        verdict, email = verify_locally(text)
        verifier = self._verifier
        if verdict is Verdict.UNKNOWN and email is not None and verifier is not None:
            key = f"verification:{keyed_hash(self._hash_key, 'verification', email.key)}"
            if kept := await self._cache.read_through(key, lambda: self._ask(verifier, email)):
                word, _, checked_at = kept.decode().partition(" ")
                return Verification(
                    verdict=Verdict(word),
                    source=SOURCE,
                    checked_at=datetime.fromisoformat(checked_at),
                )
        return Verification(verdict=verdict, source=LOCAL, checked_at=self._clock())

    async def _ask(self, verifier: HunterVerifier, email: Email) -> Entry | None:
        try:
            verdict = await verifier.verify(email)
        except (RetryLater, ProviderUnavailable):
            return None
        now = self._clock()
        if verdict is Verdict.UNKNOWN:
            return None
        return Entry(f"{verdict} {now}".encode(), now + KEPT_FOR)

    async def verify_account(self, job: Job) -> None:
        """Look up an account's email address, and store the verdict."""
        user_id = UUID(job.payload["user_id"])
        user = await self._database.read(lambda stored: stored.users.find(user_id))
        if user is None or user.email is None or self._verifier is None:
            return
        email = parse_email(user.email)
        try:
            verdict = await self._verifier.verify(email)
        except RetryLater as retry_later:
            poll_again(job, retry_later)
            verdict = Verdict.UNKNOWN
        verification = Verification(verdict=verdict, source=SOURCE, checked_at=self._clock())
        async with self._database.transaction() as repositories:
            await repositories.users.set_verification(
                user_id, email.key, verification, confirm=verdict.is_bad and self._mail_is_sent
            )
        log.info("email address verified: %s is %s", user_id, verdict)
