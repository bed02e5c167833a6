"""The SQL of sessions."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from service.domain.pages import Cursor
from service.domain.scopes import Scope
from service.domain.sessions import Session
from service.domain.users import Role
from service.repositories.connection import LAST_ID, Repository

MOST_AT_ONCE: Final = 1000
"""Rows that one statement ends or deletes: it finishes long before its timeout."""

_COLUMNS: Final = """
    s.session_id, s.user_id, s.client_id, s.origin, s.scopes, s.counter, s.user_agent,
    s.created_at, s.refreshed_at, s.expires_at
"""

# The lock makes a change of password or disabling the account wait, or this statement see it: a
# sign-in with the old password leaves no session after the change. Other sign-ins of the user wait
# too, so each sees the sessions before it, and END_SURPLUS counts exactly.
INSERT: Final = """
    INSERT INTO sessions (session_id, user_id, client_id, origin, scopes, counter, user_agent,
                          created_at, refreshed_at, expires_at)
    SELECT $1, user_id, $3, $4, $5, $6, $7, $8, $9, $10
      FROM users
     WHERE user_id = $2
       AND ($11::text IS NULL OR password_hash = $11)
       AND disabled_at IS NULL
       AND erased_at IS NULL
       FOR NO KEY UPDATE
    RETURNING session_id
"""

# FOR SHARE for the same reason: a client that is changed or deleted keeps no session.
INSERT_OF_CLIENT: Final = """
    INSERT INTO sessions (session_id, client_id, origin, scopes,
                          created_at, refreshed_at, expires_at)
    SELECT $1, client_id, $3, $4, $5, $6, $7
      FROM oauth_clients
     WHERE client_id = $2
       AND 'client_credentials' = ANY (grants)
       AND own_scopes @> $4
       AND deleted_at IS NULL
       FOR SHARE
    RETURNING session_id
"""

EXPIRIES_IF_OPEN: Final = """
    SELECT s.session_id, s.expires_at
      FROM sessions s
      LEFT JOIN users u ON u.user_id = s.user_id
     WHERE s.session_id = ANY (ARRAY(SELECT unnest($1::uuid[])))
       AND s.ended_at IS NULL
       AND s.expires_at > $2
       AND u.disabled_at IS NULL
       AND u.erased_at IS NULL
"""

ROTATE: Final = f"""
    UPDATE sessions s
       SET counter = s.counter + 1, refreshed_at = $3
      FROM users u
     WHERE s.session_id = $1
       AND s.counter = $2
       AND s.client_id = $4
       AND s.ended_at IS NULL
       AND s.expires_at > $3
       AND u.user_id = s.user_id
       AND u.disabled_at IS NULL
       AND u.erased_at IS NULL
    RETURNING {_COLUMNS}, u.role
"""

FIND_OPEN: Final = f"""
    SELECT {_COLUMNS}, u.role
      FROM sessions s
      JOIN users u ON u.user_id = s.user_id
     WHERE s.session_id = $1
       AND s.ended_at IS NULL
       AND s.expires_at > $2
       AND u.disabled_at IS NULL
       AND u.erased_at IS NULL
"""

# The caller has locked the user. The share lock makes the session's end wait, or be seen.
LOCK_OPEN: Final = """
    SELECT s.session_id
      FROM sessions s
      JOIN users u ON u.user_id = s.user_id
     WHERE s.session_id = $1
       AND s.user_id = $2
       AND s.ended_at IS NULL
       AND s.expires_at > $3
       AND u.disabled_at IS NULL
       AND u.erased_at IS NULL
       FOR SHARE OF s
"""

NEWEST_OPEN: Final = f"""
    SELECT {_COLUMNS}
      FROM sessions s
     WHERE s.user_id = $1
       AND s.ended_at IS NULL
       AND s.expires_at > $2
       AND (s.created_at, s.session_id) < (coalesce($4::timestamptz, 'infinity'), $5)
     ORDER BY s.created_at DESC, s.session_id DESC
     LIMIT $3
"""

END: Final = f"""
    UPDATE sessions s
       SET ended_at = $2
     WHERE s.session_id = $1
       AND s.ended_at IS NULL
    RETURNING {_COLUMNS}
"""

SHORTEN: Final = """
    UPDATE sessions
       SET expires_at = LEAST(expires_at, $2)
     WHERE session_id = $1
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

# The new session stays, whatever other machines' clocks say.
END_SURPLUS: Final = """
    UPDATE sessions
       SET ended_at = $3
     WHERE session_id = ANY (ARRAY(
        SELECT session_id
          FROM sessions
         WHERE user_id = $1
           AND session_id <> $2
           AND ended_at IS NULL
           AND expires_at > $3
         ORDER BY created_at DESC, session_id DESC
        OFFSET $4 - 1
         LIMIT 1000
     ))
       AND ended_at IS NULL
    RETURNING session_id
"""

# Each batch starts after the previous one, and so does not read finished rows again. The rows are
# locked in order, so those that others end meanwhile do not count towards the limit.
END_ALL_BUT: Final = """
    UPDATE sessions
       SET ended_at = $3
     WHERE session_id = ANY (ARRAY(
        SELECT session_id
          FROM sessions
         WHERE user_id = $1
           AND session_id IS DISTINCT FROM $2
           AND ended_at IS NULL
           AND (created_at, session_id) > ($4, $5)
         ORDER BY created_at, session_id
         LIMIT 1000
           FOR NO KEY UPDATE
     ))
    RETURNING created_at, session_id
"""

# Locked in order, as in END_ALL_BUT.
END_OF_CLIENT: Final = """
    UPDATE sessions
       SET ended_at = $3
     WHERE session_id IN (
        SELECT session_id
          FROM sessions
         WHERE client_id = $1
           AND client_id <> 'first-party'
           AND session_id > $2
           AND ended_at IS NULL
         ORDER BY session_id
         LIMIT 1000
           FOR UPDATE
     )
    RETURNING session_id
"""

DELETE_OF_USER: Final = """
    DELETE FROM sessions
     WHERE session_id = ANY (ARRAY(
        SELECT session_id
          FROM sessions
         WHERE user_id = $1
           AND session_id > $2
         ORDER BY session_id
         LIMIT 1000
           FOR UPDATE
     ))
    RETURNING session_id, ended_at IS NULL AS is_open
"""

_BEGINNING: Final = (datetime(1, 1, 2, tzinfo=UTC), UUID(int=0))


class SessionRepository(Repository):
    """Sessions: one statement per method, repeated for each batch of 1,000."""

    async def add(self, session: Session, password_hash: str | None) -> bool:
        """Store a user's session; return False if the user may not sign in.

        Nor if `password_hash` is given and no longer the user's.
        """
        return await self._found(
            INSERT,
            session.session_id,
            session.user_id,
            session.client_id,
            session.origin,
            session.scopes,
            session.counter,
            session.user_agent,
            session.created_at,
            session.refreshed_at,
            session.expires_at,
            password_hash,
        )

    async def add_of_client(self, session: Session) -> bool:
        """Store a session of a client of its own; return False if the client may not have one."""
        return await self._found(
            INSERT_OF_CLIENT,
            session.session_id,
            session.client_id,
            session.origin,
            session.scopes,
            session.created_at,
            session.refreshed_at,
            session.expires_at,
        )

    async def expiries_if_open(
        self, session_ids: Sequence[UUID], now: datetime
    ) -> dict[UUID, datetime]:
        """Return the expiry of each session that is open and whose user may act."""
        rows = await self._connection.fetch(EXPIRIES_IF_OPEN, session_ids, now)
        return {row["session_id"]: row["expires_at"] for row in rows}

    async def rotate(
        self, session_id: UUID, counter: int, client_id: str, now: datetime
    ) -> tuple[Session, Role] | None:
        """Count one rotation if `counter` is current; return the session as it is then, or None."""
        return await self._one(_with_role, ROTATE, session_id, counter, now, client_id)

    async def find_open(self, session_id: UUID, now: datetime) -> tuple[Session, Role] | None:
        """Return an open session of a user who may act, and the user's role."""
        return await self._one(_with_role, FIND_OPEN, session_id, now)

    async def lock_open(self, session_id: UUID, user_id: UUID, now: datetime) -> bool:
        """Return whether the session is open; it stays so until the transaction ends.

        The caller has locked the user.
        """
        return await self._found(LOCK_OPEN, session_id, user_id, now)

    async def newest_open(
        self, user_id: UUID, now: datetime, limit: int, after: Cursor | None
    ) -> list[Session]:
        """Return up to `limit` of the user's open sessions, newest first."""
        at, last_id = (after.at, after.row_id) if after else (None, LAST_ID)
        rows = await self._connection.fetch(NEWEST_OPEN, user_id, now, limit, at, last_id)
        return [_session(row) for row in rows]

    async def end(self, session_id: UUID, now: datetime) -> Session | None:
        """End the session; return it if it was open."""
        return await self._one(_session, END, session_id, now)

    async def shorten(self, session_id: UUID, expires_at: datetime) -> None:
        """Make the session expire at `expires_at` at the latest."""
        await self._connection.execute(SHORTEN, session_id, expires_at)

    async def end_own(self, session_id: UUID, user_id: UUID, now: datetime) -> bool:
        """End the session if it is the user's and open; return whether it was."""
        return await self._found(END_OWN, session_id, user_id, now)

    async def end_surplus(
        self, user_id: UUID, new_session_id: UUID, most_open: int, now: datetime
    ) -> list[UUID]:
        """End the user's oldest sessions, up to 1,000, beyond `most_open`; return their ids.

        In the transaction that added the new session, which stays.
        """
        rows = await self._connection.fetch(END_SURPLUS, user_id, new_session_id, now, most_open)
        return [row["session_id"] for row in rows]

    async def end_all_but(
        self, user_id: UUID, kept_session_id: UUID | None, now: datetime
    ) -> list[UUID]:
        """End the user's sessions except the kept one; return the ids of those ended."""
        ended: list[UUID] = []
        last = _BEGINNING
        while True:
            rows = await self._connection.fetch(END_ALL_BUT, user_id, kept_session_id, now, *last)
            ended += [row["session_id"] for row in rows]
            if len(rows) < MOST_AT_ONCE:
                return ended
            last = max((row["created_at"], row["session_id"]) for row in rows)

    async def end_of_client(self, client_id: str, after: UUID, now: datetime) -> list[UUID]:
        """End up to MOST_AT_ONCE of the client's sessions with ids after that one; return them."""
        rows = await self._connection.fetch(END_OF_CLIENT, client_id, after, now)
        return [row["session_id"] for row in rows]

    async def delete_of_user(self, user_id: UUID) -> list[UUID]:
        """Delete the user's sessions, ended ones too; return the ids of those that were open."""
        were_open: list[UUID] = []
        _, last = _BEGINNING
        while True:
            rows = await self._connection.fetch(DELETE_OF_USER, user_id, last)
            were_open += [row["session_id"] for row in rows if row["is_open"]]
            if len(rows) < MOST_AT_ONCE:
                return were_open
            last = max(row["session_id"] for row in rows)


def _with_role(row: Any) -> tuple[Session, Role]:
    columns = dict(row)
    role = Role(columns.pop("role"))
    return _session(columns), role


def _session(row: Any) -> Session:
    scopes = None if row["scopes"] is None else frozenset(map(Scope, row["scopes"]))
    return Session(**{**row, "scopes": scopes})
