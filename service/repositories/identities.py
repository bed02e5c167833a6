"""The SQL of identities: who users are to other issuers."""

from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.identities import Identity, IdentityTaken
from service.repositories.connection import Connection

# The lock makes the identity's end wait, or be seen: a reset of the password leaves no session
# behind of somebody who signs in with it at that moment.
FIND_USER_ID: Final = """
    SELECT user_id
      FROM identities
     WHERE issuer = $1
       AND subject = $2
       FOR KEY SHARE
"""

# No violation of identities_of_one_user: PostgreSQL would log the subject, which may be an address.
INSERT: Final = """
    INSERT INTO identities (issuer, subject, user_id, created_at)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (issuer, subject) DO NOTHING
    RETURNING user_id
"""

# The lock makes a change of the e-mail, or the account's end, wait or be seen. Beginning the
# session takes the same one.
LINK: Final = """
    INSERT INTO identities (issuer, subject, user_id, created_at)
    SELECT $1, $2, user_id, $4
      FROM users
     WHERE email_key = $3
       AND email_confirmed_at IS NOT NULL
       FOR NO KEY UPDATE
    ON CONFLICT (issuer, subject) DO NOTHING
    RETURNING user_id
"""

DELETE_OF_USER: Final = """
    DELETE FROM identities
     WHERE user_id = $1
"""


class IdentityRepository:
    """Identities, one statement a method."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def find_user_id(self, identity: Identity) -> UUID | None:
        """Return whose identity it is."""
        user_id: UUID | None = await self._connection.fetchval(
            FIND_USER_ID, identity.issuer, identity.subject
        )
        return user_id

    async def add(self, identity: Identity, user_id: UUID, now: datetime) -> None:
        """Store whose identity it is; raise IdentityTaken."""
        stored = await self._connection.fetchval(
            INSERT, identity.issuer, identity.subject, user_id, now
        )
        if stored is None:
            raise IdentityTaken

    async def link(self, identity: Identity, email_key: str, now: datetime) -> UUID | None:
        """Store it as the identity of the account that has confirmed the e-mail.

        Returns whose it is, or None where there is no such account. Raises IdentityTaken.
        """
        user_id: UUID | None = await self._connection.fetchval(
            LINK, identity.issuer, identity.subject, email_key, now
        )
        if user_id is None and await self.find_user_id(identity) is not None:
            raise IdentityTaken
        return user_id

    async def delete_of_user(self, user_id: UUID) -> None:
        await self._connection.execute(DELETE_OF_USER, user_id)
