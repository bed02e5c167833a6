"""The SQL of security events."""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.pages import Cursor
from service.domain.security_events import Activity, Origin, SecurityEvent
from service.repositories.connection import LAST_ID, Repository

# The lock makes the account's erasure wait, or be seen: nothing is stored of an erased account.
INSERT: Final = """
    INSERT INTO security_events
           (security_event_id, user_id, event, occurred_at, address, user_agent)
    SELECT $1, user_id, $3, $4, $5, $6
      FROM users
     WHERE user_id = $2
       AND erased_at IS NULL
       FOR KEY SHARE
"""

# One row whether or not there is such an account: timing must not reveal it. The lock makes its
# erasure wait, or be seen.
INSERT_FAILED_SIGN_IN: Final = """
    INSERT INTO security_events
           (security_event_id, user_id, event, occurred_at, address, user_agent)
    SELECT $1, (SELECT user_id FROM users WHERE email_key = $2 FOR KEY SHARE), $3, $4, $5, $6
    RETURNING user_id
"""

NEWEST: Final = """
    SELECT security_event_id, event, occurred_at, address, user_agent
      FROM security_events
     WHERE user_id = $1
       AND occurred_at > $2
       AND (occurred_at, security_event_id)
           < (coalesce($4::timestamptz, 'infinity'), $5)
     ORDER BY occurred_at DESC, security_event_id DESC
     LIMIT $3
"""

# Each batch starts after the previous one, and so does not read deleted rows again.
DELETE_OF_USER: Final = """
    DELETE FROM security_events
     WHERE security_event_id = ANY (ARRAY(
        SELECT security_event_id
          FROM security_events
         WHERE user_id = $1
           AND (occurred_at, security_event_id) < ($2, $3)
         ORDER BY occurred_at DESC, security_event_id DESC
         LIMIT 1000
           FOR UPDATE
     ))
    RETURNING occurred_at, security_event_id
"""

MOST_AT_ONCE: Final = 1000
"""Rows that one statement deletes."""


class SecurityEventRepository(Repository):
    """Security events, one statement per method."""

    async def add(self, event: SecurityEvent, user_id: UUID, origin: Origin, now: datetime) -> None:
        """Store the event, unless the account is erased."""
        await self._connection.execute(
            INSERT, uuid7(), user_id, event, now, origin.address, origin.user_agent
        )

    async def add_failed_sign_in(
        self, email_key: str, origin: Origin, now: datetime
    ) -> UUID | None:
        """Store a failed sign-in; return the account that has the email address, if any has."""
        user_id: UUID | None = await self._connection.fetchval(
            INSERT_FAILED_SIGN_IN,
            uuid7(),
            email_key,
            SecurityEvent.SIGN_IN_FAILED,
            now,
            origin.address,
            origin.user_agent,
        )
        return user_id

    async def newest(
        self, user_id: UUID, since: datetime, limit: int, after: Cursor | None
    ) -> list[Activity]:
        """Return up to `limit` of the user's events later than `since`, newest first."""
        at, last_id = (after.at, after.row_id) if after else (None, LAST_ID)
        rows = await self._connection.fetch(NEWEST, user_id, since, limit, at, last_id)
        return [Activity(**row) for row in rows]

    async def delete_of_user(self, user_id: UUID) -> None:
        """Delete the user's events, however many: failed sign-ins of strangers are among them."""
        last = (datetime(9999, 12, 31, tzinfo=UTC), LAST_ID)
        while True:
            rows = await self._connection.fetch(DELETE_OF_USER, user_id, *last)
            if len(rows) < MOST_AT_ONCE:
                return
            last = min((row["occurred_at"], row["security_event_id"]) for row in rows)
