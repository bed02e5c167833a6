"""Security events: a log line for operators, and a row for the owner of the account."""

import hmac
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID

from service.domain.clock import Clock
from service.domain.pages import Cursor, Page
from service.domain.security_events import KEPT_FOR, Activity, Origin, SecurityEvent
from service.postgresql.database import Database, Repositories, retried

_WARNINGS: Final = frozenset(
    {
        SecurityEvent.SIGN_IN_FAILED,
        SecurityEvent.REFRESH_TOKEN_REUSED,
        SecurityEvent.AUTHORIZATION_CODE_REUSED,
        SecurityEvent.CLIENT_REFUSED,
    }
)
log = logging.getLogger("service.security")


def log_event(event: SecurityEvent, origin: Origin, **about: str | int | None) -> None:
    """Log an event with its origin."""
    log.log(
        logging.WARNING if event in _WARNINGS else logging.INFO,
        event.value,
        extra={**about, "address": origin.address, "request_id": origin.request_id},
    )


class SecurityEvents:
    """Records what happens to accounts. `origin` returns where the current request came from."""

    def __init__(
        self, database: Database, clock: Clock, origin: Callable[[], Origin], hash_key: bytes
    ) -> None:
        self._database = database
        self._clock = clock
        self._origin = origin
        self._hash_key = hash_key

    async def record(
        self,
        repositories: Repositories,
        event: SecurityEvent,
        user_id: UUID,
        now: datetime,
        *,
        reason: str | None = None,
        count: int | None = None,
        by_another: bool = False,
    ) -> None:
        """Store the event for the account's owner in the caller's transaction, and log it.

        The owner is not shown where the request came from if it was made `by_another`, an admin.
        """
        origin = Origin() if by_another else self._origin()
        await repositories.security_events.add(event, user_id, origin, now)
        self.log_when_committed(repositories, event, user_id, reason=reason, count=count)

    async def record_ended_sessions(
        self,
        repositories: Repositories,
        user_id: UUID,
        ended: Sequence[UUID],
        now: datetime,
        *,
        reason: str,
    ) -> None:
        """Record that sessions have ended: one event for all of them, and none for none."""
        if ended:
            await self.record(
                repositories,
                SecurityEvent.SESSION_ENDED,
                user_id,
                now,
                reason=reason,
                count=len(ended),
            )

    @retried
    async def record_failed_sign_in(self, email_key: str, reason: str) -> None:
        """Store and log a failed sign-in, whether or not the email address has an account."""
        async with self._database.autocommit() as repositories:
            user_id = await repositories.security_events.add_failed_sign_in(
                email_key, self._origin(), self._clock()
            )
        self.log(SecurityEvent.SIGN_IN_FAILED, user_id or email_key, reason=reason)

    def log_when_committed(
        self,
        repositories: Repositories,
        event: SecurityEvent,
        user_id: UUID | None,
        *,
        reason: str | None = None,
        count: int | None = None,
    ) -> None:
        """Log an event after the commit, and not at all if the transaction is rolled back."""
        repositories.after_commit(partial(self.log, event, user_id, reason=reason, count=count))

    def log(
        self,
        event: SecurityEvent,
        account: UUID | str | None,
        *,
        reason: str | None = None,
        count: int | None = None,
    ) -> None:
        """Log an event now. `account` is the user's id, or an email key without an account."""
        log_event(
            event,
            self._origin(),
            account=None if account is None else self.account_hash(account),
            reason=reason,
            count=count,
        )

    def log_refused_client(self, client_id: str | None) -> None:
        """Log a wrong secret of a client, or, if `client_id` is None, an unknown client."""
        reason = "wrong-secret" if client_id else "unknown-client"
        log_event(SecurityEvent.CLIENT_REFUSED, self._origin(), client=client_id, reason=reason)

    def account_hash(self, account: UUID | str) -> str:
        """Return the account's pseudonym in the log, which only the key links to the account."""
        return hmac.digest(self._hash_key, f"account {account}".encode(), "sha256").hex()[:16]

    async def page(self, user_id: UUID, limit: int, after: Cursor | None) -> Page[Activity]:
        """Return a page of what happened to the account in the last 90 days, newest first."""
        since = self._clock() - KEPT_FOR
        events = await self._database.from_standby(
            lambda stored: stored.security_events.newest(user_id, since, limit + 1, after)
        )
        return Page.of(events, limit, lambda last: Cursor(last.occurred_at, last.security_event_id))
