"""The SQL of changes that can be undone."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from service.domain.account_changes import AccountChange, ChangeKind
from service.domain.emails import Email
from service.domain.identities import Identity
from service.repositories.connection import Repository

# The caller has locked the user, so no two changes get the same number.
INSERT: Final = """
    INSERT INTO account_changes (account_change_id, user_id, number, kind, email, email_key,
                                 email_confirmed, issuer, subject, expires_at)
    SELECT $1, $2, coalesce(max(number), 0) + 1, $3, $4, $5, $6, $7, $8, $9
      FROM account_changes
     WHERE user_id = $2
"""

_COLUMNS: Final = """
    account_change_id, user_id, number, kind, email, email_key, email_confirmed, issuer, subject,
    password_changed
"""

OFFER: Final = f"""
    UPDATE account_changes
       SET token_hash = $2, expires_at = $3
     WHERE account_change_id = $1
       AND NOT undone
    RETURNING {_COLUMNS}
"""

FIND_USER_ID: Final = """
    SELECT user_id
      FROM account_changes
     WHERE token_hash = $1
       AND expires_at > $2
"""

# Removing the token makes it good for one use: of two requests one gets the row.
TAKE: Final = f"""
    UPDATE account_changes
       SET undone = true, token_hash = NULL, expires_at = 'infinity'
     WHERE token_hash = $1
       AND expires_at > $2
    RETURNING {_COLUMNS}
"""

NOTE_NEW_HASH: Final = """
    UPDATE account_changes
       SET password_changed = true
     WHERE user_id = $1
"""

IS_REFUSED: Final = """
    SELECT EXISTS (
        SELECT FROM account_changes
         WHERE user_id = $1
           AND issuer = $2
           AND subject = $3
           AND undone
    )
"""

DELETE_FROM: Final = """
    DELETE FROM account_changes
     WHERE user_id = $1
       AND number >= $2
"""

DELETE_OF_USER: Final = """
    DELETE FROM account_changes
     WHERE user_id = $1
"""


class AccountChangeRepository(Repository):
    """Changes that can be undone, one statement per method."""

    async def add(self, change: AccountChange, expires_at: datetime) -> None:
        """Store the change as its account's newest; the caller has locked the account."""
        await self._connection.execute(
            INSERT,
            change.account_change_id,
            change.user_id,
            change.kind,
            change.email.shown,
            change.email.key,
            change.email_confirmed,
            change.issuer,
            change.subject,
            expires_at,
        )

    async def offer(
        self, account_change_id: UUID, token_hash: bytes | None, expires_at: datetime
    ) -> AccountChange | None:
        """Give the change the token of its mail; return None if it can no longer be undone."""
        return await self._one(_change, OFFER, account_change_id, token_hash, expires_at)

    async def find_user_id(self, token_hash: bytes, now: datetime) -> UUID | None:
        """Return the id of the user whose change the token can undo."""
        user_id: UUID | None = await self._connection.fetchval(FIND_USER_ID, token_hash, now)
        return user_id

    async def take(self, token_hash: bytes, now: datetime) -> AccountChange | None:
        """Mark the change that the token can undo as undone, and return it."""
        return await self._one(_change, TAKE, token_hash, now)

    async def note_new_password(self, user_id: UUID) -> None:
        """Note that the password has changed since the user's changes so far."""
        await self._connection.execute(NOTE_NEW_HASH, user_id)

    async def is_refused(self, user_id: UUID, identity: Identity) -> bool:
        """Return whether linking the identity to the account was undone before."""
        return bool(
            await self._connection.fetchval(IS_REFUSED, user_id, identity.issuer, identity.subject)
        )

    async def delete_from(self, change: AccountChange) -> None:
        """Delete the change and all later ones of the account."""
        await self._connection.execute(DELETE_FROM, change.user_id, change.number)

    async def delete_of_user(self, user_id: UUID) -> None:
        await self._connection.execute(DELETE_OF_USER, user_id)


def _change(row: Any) -> AccountChange:
    members = dict(row)
    members["kind"] = ChangeKind(row["kind"])
    members["email"] = Email(row["email"], members.pop("email_key"))
    return AccountChange(**members)
