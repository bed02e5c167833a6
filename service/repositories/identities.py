"""The SQL of identities: who users are to other issuers."""

from datetime import datetime
from typing import Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.identities import Identity, IdentityTaken, LinkedIdentity
from service.repositories.connection import Repository

FIND_USER_ID: Final = """
    SELECT user_id
      FROM identities
     WHERE issuer = $1
       AND subject = $2
"""

OF_USER: Final = """
    SELECT identity_id, issuer, email, created_at
      FROM identities
     WHERE user_id = $1
     ORDER BY created_at DESC, identity_id DESC
"""

# ON CONFLICT, because PostgreSQL would log the subject of a violation, which may be an address.
INSERT: Final = """
    INSERT INTO identities (identity_id, issuer, subject, user_id, email, email_key, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (issuer, subject) DO NOTHING
    RETURNING user_id
"""

DELETE: Final = """
    DELETE FROM identities
     WHERE issuer = $1
       AND subject = $2
       AND user_id = $3
"""

UNLINK: Final = """
    DELETE FROM identities
     WHERE identity_id = $1
"""

# An unknown address counts as another one.
DELETE_OF_OTHER_EMAILS: Final = """
    DELETE FROM identities
     WHERE user_id = $1
       AND email_key IS DISTINCT FROM $2
"""

DELETE_OF_USER: Final = """
    DELETE FROM identities
     WHERE user_id = $1
"""


class IdentityRepository(Repository):
    """Identities, one statement per method."""

    async def find_user_id(self, identity: Identity) -> UUID | None:
        user_id: UUID | None = await self._connection.fetchval(
            FIND_USER_ID, identity.issuer, identity.subject
        )
        return user_id

    async def of_user(self, user_id: UUID) -> list[LinkedIdentity]:
        """Return the user's identities, newest first."""
        return [LinkedIdentity(**row) for row in await self._connection.fetch(OF_USER, user_id)]

    async def add(self, identity: Identity, user_id: UUID, now: datetime) -> None:
        """Link the identity to the user; raise IdentityTaken."""
        stored = await self._connection.fetchval(
            INSERT,
            uuid7(),
            identity.issuer,
            identity.subject,
            user_id,
            identity.email and identity.email.shown,
            identity.email and identity.email.key,
            now,
        )
        if stored is None:
            raise IdentityTaken

    async def delete(self, issuer: str, subject: str, user_id: UUID) -> None:
        """Delete the identity if it is still the user's."""
        await self._connection.execute(DELETE, issuer, subject, user_id)

    async def unlink(self, identity_id: UUID) -> None:
        await self._connection.execute(UNLINK, identity_id)

    async def delete_of_other_emails(self, user_id: UUID, email_key: str) -> None:
        """Delete the user's identities that came with another email address."""
        await self._connection.execute(DELETE_OF_OTHER_EMAILS, user_id, email_key)

    async def delete_of_user(self, user_id: UUID) -> None:
        await self._connection.execute(DELETE_OF_USER, user_id)
