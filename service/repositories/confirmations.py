"""The SQL of confirmations: which tokens have confirmed the address that an account has."""

from typing import Final
from uuid import UUID

from service.repositories.connection import Repository

INSERT: Final = """
    INSERT INTO confirmations (token_hash, user_id, confirmed_at)
    SELECT $1, user_id, email_confirmed_at
      FROM users
     WHERE user_id = $2
"""

# An account that is erased, or has another address by now, has another time of confirmation.
STILL_HOLDS: Final = """
    SELECT EXISTS (
        SELECT FROM confirmations c
          JOIN users u ON u.user_id = c.user_id
         WHERE c.token_hash = $1
           AND u.email_confirmed_at = c.confirmed_at
    )
"""

DELETE_OF_USER: Final = """
    DELETE FROM confirmations
     WHERE user_id = $1
"""


class ConfirmationRepository(Repository):
    """Confirmations, one statement per method."""

    async def add(self, token_hash: bytes, user_id: UUID) -> None:
        """Note that the token was used for the account's address, which is confirmed."""
        await self._connection.execute(INSERT, token_hash, user_id)

    async def still_holds(self, token_hash: bytes) -> bool:
        """Return whether the token confirmed the address that its account still has."""
        return bool(await self._connection.fetchval(STILL_HOLDS, token_hash))

    async def delete_of_user(self, user_id: UUID) -> None:
        await self._connection.execute(DELETE_OF_USER, user_id)
