"""The SQL of authorization codes."""

from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.oauth import AuthorizationCode
from service.domain.scopes import Scope
from service.repositories.connection import Repository

# FOR SHARE, as for a session: nothing granted with an old password outlives its change.
INSERT: Final = """
    INSERT INTO authorization_codes (code_hash, client_id, user_id, redirect_uri, scopes,
                                     code_challenge, created_at, expires_at)
    SELECT $1, $2, user_id, $4, $5, $6, $7, $8
      FROM users
     WHERE user_id = $3
       AND ($9::text IS NULL OR password_hash = $9)
       AND disabled_at IS NULL
       AND erased_at IS NULL
       FOR SHARE
    RETURNING code_hash
"""

# The lock that beginning the session takes: two that share the row could not both upgrade to it.
LOCK_USER: Final = """
    SELECT u.user_id
      FROM authorization_codes c
      JOIN users u ON u.user_id = c.user_id
     WHERE c.code_hash = $1
       FOR NO KEY UPDATE OF u
"""

# The lock makes parallel redemptions of one code queue: the second sees the first.
LOCK: Final = """
    SELECT code_hash, client_id, user_id, redirect_uri, scopes, code_challenge,
           created_at, expires_at, session_id, redeemed_at IS NOT NULL AS redeemed
      FROM authorization_codes
     WHERE code_hash = $1
       FOR UPDATE
"""

REDEEM: Final = """
    UPDATE authorization_codes
       SET redeemed_at = $2, session_id = $3
     WHERE code_hash = $1
"""

DELETE_OF_USER: Final = """
    DELETE FROM authorization_codes
     WHERE user_id = $1
       AND redeemed_at IS NULL
"""

DELETE_OF_CLIENT: Final = """
    DELETE FROM authorization_codes
     WHERE client_id = $1
       AND redeemed_at IS NULL
"""


class AuthorizationCodeRepository(Repository):
    """Authorization codes, one statement per method."""

    async def add(self, code: AuthorizationCode, password_hash: str | None) -> bool:
        """Store the code; return False if the user may not sign in, or the hash has changed."""
        return await self._found(
            INSERT,
            code.code_hash,
            code.client_id,
            code.user_id,
            code.redirect_uri,
            code.scopes,
            code.code_challenge,
            code.created_at,
            code.expires_at,
            password_hash,
        )

    async def lock_user(self, code_hash: bytes) -> None:
        """Hold the code's user until the transaction ends."""
        await self._connection.fetchval(LOCK_USER, code_hash)

    async def lock(self, code_hash: bytes) -> AuthorizationCode | None:
        """Return the code, locked until the transaction ends."""
        row = await self._connection.fetchrow(LOCK, code_hash)
        if row is None:
            return None
        return AuthorizationCode(**{**row, "scopes": frozenset(map(Scope, row["scopes"]))})

    async def redeem(self, code_hash: bytes, session_id: UUID, now: datetime) -> None:
        """Note which session the code has given."""
        await self._connection.execute(REDEEM, code_hash, now, session_id)

    async def delete_of_user(self, user_id: UUID) -> None:
        """Delete the user's codes that were not redeemed."""
        await self._connection.execute(DELETE_OF_USER, user_id)

    async def delete_of_client(self, client_id: str) -> None:
        """Delete the client's codes that were not redeemed."""
        await self._connection.execute(DELETE_OF_CLIENT, client_id)
