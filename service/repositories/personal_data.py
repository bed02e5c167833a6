"""The SQL of what is held about a person, to be given to that person: no hashes, no one else's."""

from typing import Any, Final
from uuid import UUID

from service.domain.pages import Cursor
from service.repositories.connection import LAST_ID, Connection

ACCOUNT: Final = """
    SELECT user_id AS id, email, email_confirmed_at, role, promoted_at, created_at, disabled_at,
           password_hash IS NOT NULL AS has_password, email_verdict, email_verdict_source,
           email_checked_at
      FROM users
     WHERE user_id = $1
       AND erased_at IS NULL
"""

IDENTITIES: Final = """
    SELECT issuer, subject, created_at
      FROM identities
     WHERE user_id = $1
     ORDER BY created_at, issuer, subject
"""

SESSIONS: Final = """
    SELECT session_id AS id, client_id, origin, scopes, user_agent, created_at, refreshed_at,
           expires_at, ended_at
      FROM sessions
     WHERE user_id = $1
     ORDER BY created_at, session_id
"""

GRANTS: Final = """
    SELECT client_id, redirect_uri, scopes, created_at, redeemed_at
      FROM authorization_codes
     WHERE user_id = $1
     ORDER BY created_at
"""

MAIL_TOKENS: Final = """
    SELECT purpose, email, created_at, expires_at
      FROM mail_tokens
     WHERE user_id = $1
     ORDER BY created_at
"""

CODES: Final = """
    SELECT c.code, c.created_at, c.expires_at, c.ended_at, c.max_uses,
           c.uses + COALESCE((SELECT sum(u.uses) FROM referral_code_uses u
                               WHERE u.referral_code_id = c.referral_code_id), 0)::bigint AS uses
      FROM referral_codes c
     WHERE c.owner_id = $1
     ORDER BY c.created_at, c.referral_code_id
"""

REFERRAL: Final = """
    SELECT referrer_id, code, registered_at
      FROM referrals
     WHERE user_id = $1
"""

REFERRALS: Final = """
    SELECT user_id AS id, code, registered_at
      FROM referrals
     WHERE referrer_id = $1
       AND (registered_at, user_id) < (coalesce($2::timestamptz, 'infinity'), $3)
     ORDER BY registered_at DESC, user_id DESC
     LIMIT $4
"""

SECURITY_EVENTS: Final = """
    SELECT event, occurred_at, address, user_agent
      FROM security_events
     WHERE user_id = $1
     ORDER BY occurred_at, security_event_id
"""
Row = dict[str, Any]


class PersonalDataRepository:
    """What the tables hold about one person, one statement per method."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def account(self, user_id: UUID) -> Row | None:
        row = await self._connection.fetchrow(ACCOUNT, user_id)
        return None if row is None else dict(row)

    async def identities(self, user_id: UUID) -> list[Row]:
        return await self._all(IDENTITIES, user_id)

    async def sessions(self, user_id: UUID) -> list[Row]:
        return await self._all(SESSIONS, user_id)

    async def grants(self, user_id: UUID) -> list[Row]:
        """Return what the user has allowed clients in the last day."""
        return await self._all(GRANTS, user_id)

    async def mail_tokens(self, user_id: UUID) -> list[Row]:
        return await self._all(MAIL_TOKENS, user_id)

    async def codes(self, user_id: UUID) -> list[Row]:
        return await self._all(CODES, user_id)

    async def referral(self, user_id: UUID) -> Row | None:
        """Return with whose code the user has registered."""
        row = await self._connection.fetchrow(REFERRAL, user_id)
        return None if row is None else dict(row)

    async def referrals(self, user_id: UUID, limit: int, after: Cursor | None) -> list[Row]:
        """Return up to `limit` of those who registered with the user's codes, newest first."""
        at, last_id = (after.at, after.row_id) if after else (None, LAST_ID)
        return await self._all(REFERRALS, user_id, at, last_id, limit)

    async def security_events(self, user_id: UUID) -> list[Row]:
        return await self._all(SECURITY_EVENTS, user_id)

    async def _all(self, statement: str, *arguments: Any) -> list[Row]:
        return [dict(row) for row in await self._connection.fetch(statement, *arguments)]
