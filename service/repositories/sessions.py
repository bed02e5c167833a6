"""The SQL of sessions."""

from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.pages import Cursor
from service.domain.sessions import Session
from service.domain.users import Role
from service.repositories.connection import Connection

# The share lock makes a change of password or a disabling wait, or this statement see it: a
# sign-in with the old password leaves no session behind the change.
INSERT: Final = """
    INSERT INTO sessions (session_id, user_id, counter, user_agent,
                          created_at, refreshed_at, expires_at)
    SELECT $1, user_id, $3, $4, $5, $6, $7
      FROM users
     WHERE user_id = $2
       AND password_hash = $8
       AND disabled_at IS NULL
       FOR SHARE
    RETURNING session_id
"""

EXPIRY_IF_OPEN: Final = """
    SELECT s.expires_at
      FROM sessions s
      JOIN users u ON u.user_id = s.user_id
     WHERE s.session_id = $1
       AND s.ended_at IS NULL
       AND s.expires_at > $2
       AND u.disabled_at IS NULL
       AND u.erased_at IS NULL
"""

ROTATE: Final = """
    UPDATE sessions s
       SET counter = s.counter + 1, refreshed_at = $3
      FROM users u
     WHERE s.session_id = $1
       AND s.counter = $2
       AND s.ended_at IS NULL
       AND s.expires_at > $3
       AND u.user_id = s.user_id
       AND u.disabled_at IS NULL
       AND u.erased_at IS NULL
    RETURNING u.user_id, u.role
"""

NEWEST_OPEN: Final = """
    SELECT session_id, user_id, counter, user_agent, created_at, refreshed_at, expires_at
      FROM sessions
     WHERE user_id = $1
       AND ended_at IS NULL
       AND expires_at > $2
     ORDER BY created_at DESC, session_id DESC
     LIMIT $3
"""

NEWEST_OPEN_BEHIND: Final = """
    SELECT session_id, user_id, counter, user_agent, created_at, refreshed_at, expires_at
      FROM sessions
     WHERE user_id = $1
       AND ended_at IS NULL
       AND expires_at > $2
       AND (created_at, session_id) < ($4, $5)
     ORDER BY created_at DESC, session_id DESC
     LIMIT $3
"""

END: Final = """
    UPDATE sessions
       SET ended_at = $2
     WHERE session_id = $1
       AND ended_at IS NULL
    RETURNING session_id
"""

END_OWN: Final = """
    UPDATE sessions
       SET ended_at = $3
     WHERE session_id = $1
       AND user_id = $2
       AND ended_at IS NULL
       AND expires_at > $3
    RETURNING session_id
"""

END_ALL_BUT: Final = """
    UPDATE sessions
       SET ended_at = $3
     WHERE user_id = $1
       AND session_id IS DISTINCT FROM $2
       AND ended_at IS NULL
    RETURNING session_id
"""

DELETE_OF_USER: Final = """
    DELETE FROM sessions
     WHERE user_id = $1
    RETURNING session_id
"""

DELETE_EXPIRED: Final = """
    DELETE FROM sessions
     WHERE session_id IN (
        SELECT session_id FROM sessions WHERE expires_at <= $1 ORDER BY expires_at LIMIT 1000
     )
"""


class SessionRepository:
    """Sessions, one statement a method."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(self, session: Session, password_hash: str) -> bool:
        """Store the session if the user may sign in and the hash is still the one given."""
        session_id = await self._connection.fetchval(
            INSERT,
            session.session_id,
            session.user_id,
            session.counter,
            session.user_agent,
            session.created_at,
            session.refreshed_at,
            session.expires_at,
            password_hash,
        )
        return session_id is not None

    async def expiry_if_open(self, session_id: UUID, now: datetime) -> datetime | None:
        """Return when the session expires if it lives and its user may act, else None."""
        expires_at: datetime | None = await self._connection.fetchval(
            EXPIRY_IF_OPEN, session_id, now
        )
        return expires_at

    async def rotate(
        self, session_id: UUID, counter: int, now: datetime
    ) -> tuple[UUID, Role] | None:
        """Count one rotation if `counter` is the present one; return the user, else None."""
        row = await self._connection.fetchrow(ROTATE, session_id, counter, now)
        return None if row is None else (row["user_id"], Role(row["role"]))

    async def newest_open(
        self, user_id: UUID, now: datetime, limit: int, behind: Cursor | None
    ) -> list[Session]:
        """Return up to `limit` of the user's open sessions, newest first."""
        if behind is None:
            rows = await self._connection.fetch(NEWEST_OPEN, user_id, now, limit)
        else:
            rows = await self._connection.fetch(
                NEWEST_OPEN_BEHIND, user_id, now, limit, behind.at, behind.row_id
            )
        return [Session(**row) for row in rows]

    async def end(self, session_id: UUID, now: datetime) -> bool:
        """End the session; return whether it was open."""
        return await self._connection.fetchval(END, session_id, now) is not None

    async def end_own(self, session_id: UUID, user_id: UUID, now: datetime) -> bool:
        """End the session if it is the user's; return whether it was, and open."""
        return await self._connection.fetchval(END_OWN, session_id, user_id, now) is not None

    async def end_all_but(
        self, user_id: UUID, kept_session_id: UUID | None, now: datetime
    ) -> list[UUID]:
        """End the user's sessions but the kept one; return those that were ended."""
        rows = await self._connection.fetch(END_ALL_BUT, user_id, kept_session_id, now)
        return [row["session_id"] for row in rows]

    async def delete_of_user(self, user_id: UUID) -> list[UUID]:
        """Delete the user's sessions, which say what browser the user has; return them."""
        rows = await self._connection.fetch(DELETE_OF_USER, user_id)
        return [row["session_id"] for row in rows]

    async def delete_expired(self, now: datetime) -> None:
        """Delete up to 1 000 sessions that have expired."""
        await self._connection.execute(DELETE_EXPIRED, now)
