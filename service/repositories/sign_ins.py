"""The SQL of unfinished sign-ins with other issuers."""

from datetime import datetime
from typing import Final

from service.domain.identities import SignIn
from service.repositories.connection import Repository

INSERT: Final = """
    INSERT INTO sign_ins (state_hash, browser_hash, provider, nonce, code_verifier, referral_code,
                          created_at, expires_at, authorization_request)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""

FIND_REQUEST: Final = """
    SELECT authorization_request
      FROM sign_ins
     WHERE state_hash = $1
       AND browser_hash = $2
       AND provider = $3
       AND expires_at > $4
"""

# Deleting makes it good for one use: of two callbacks one gets the row. Another browser or provider
# gets nothing and ends nothing.
TAKE: Final = """
    DELETE FROM sign_ins
     WHERE state_hash = $1
       AND browser_hash = $2
       AND provider = $3
       AND expires_at > $4
    RETURNING state_hash, browser_hash, provider, nonce, code_verifier, referral_code,
              created_at, expires_at, authorization_request
"""


class SignInRepository(Repository):
    """Sign-ins, one statement per method."""

    async def add(self, sign_in: SignIn) -> None:
        await self._connection.execute(
            INSERT,
            sign_in.state_hash,
            sign_in.browser_hash,
            sign_in.provider,
            sign_in.nonce,
            sign_in.code_verifier,
            sign_in.referral_code,
            sign_in.created_at,
            sign_in.expires_at,
            sign_in.authorization_request,
        )

    async def find_request(
        self, state_hash: bytes, browser_hash: bytes, provider: str, now: datetime
    ) -> str | None:
        """Return what the sign-in that this browser began continues with, if anything."""
        request: str | None = await self._connection.fetchval(
            FIND_REQUEST, state_hash, browser_hash, provider, now
        )
        return request

    async def take(
        self, state_hash: bytes, browser_hash: bytes, provider: str, now: datetime
    ) -> SignIn | None:
        """Delete the sign-in that this browser began, and return it."""
        row = await self._connection.fetchrow(TAKE, state_hash, browser_hash, provider, now)
        return None if row is None else SignIn(**row)
