"""The SQL of the tokens in mails."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from service.domain.emails import Email
from service.domain.mails import MailToken, TokenPurpose
from service.repositories.connection import Repository

# The share lock makes the account's erasure wait, or be seen.
INSERT: Final = """
    INSERT INTO mail_tokens (token_hash, purpose, user_id, email, email_key, created_at, expires_at,
                             session_id)
    SELECT $1, $2, user_id, $4, $5, $6, $7, $8
      FROM users
     WHERE user_id = $3
       AND erased_at IS NULL
       FOR SHARE
    RETURNING token_hash
"""

# The lock does the same for a claim.
INSERT_OF_CLAIM: Final = """
    INSERT INTO mail_tokens (token_hash, purpose, claim_id, email, email_key,
                             created_at, expires_at)
    SELECT $1, $2, claim_id, $4, $5, $6, $7
      FROM claims
     WHERE claim_id = $3
       FOR KEY SHARE
    RETURNING token_hash
"""

_COLUMNS: Final = """
    token_hash, purpose, user_id, claim_id, email, email_key, created_at, expires_at, session_id
"""

FIND: Final = f"""
    SELECT {_COLUMNS}
      FROM mail_tokens
     WHERE token_hash = $1
       AND purpose = ANY ($2)
       AND expires_at > $3
"""

# Deleting makes it good for one use: of two requests one gets the row.
TAKE: Final = f"""
    DELETE FROM mail_tokens
     WHERE token_hash = $1
       AND purpose = ANY ($2)
       AND expires_at > $3
    RETURNING {_COLUMNS}
"""

HAND_OVER: Final = """
    UPDATE mail_tokens
       SET user_id = $2, claim_id = NULL
     WHERE claim_id = $1
"""

DELETE: Final = """
    DELETE FROM mail_tokens
     WHERE token_hash = $1
"""

DELETE_OF_USER: Final = """
    DELETE FROM mail_tokens
     WHERE user_id = $1
"""


class MailTokenRepository(Repository):
    """Tokens in mails, one statement per method."""

    async def add(self, token: MailToken) -> bool:
        """Store it; return False if its account is erased or its claim is gone."""
        about = (
            token.token_hash,
            token.purpose,
            token.user_id or token.claim_id,
            token.email.shown,
            token.email.key,
            token.created_at,
            token.expires_at,
        )
        stored = await (
            self._connection.fetchval(INSERT, *about, token.session_id)
            if token.claim_id is None
            else self._connection.fetchval(INSERT_OF_CLAIM, *about)
        )
        return stored is not None

    async def find(
        self, token_hash: bytes, purposes: Sequence[TokenPurpose], now: datetime
    ) -> MailToken | None:
        return await self._one(_token, FIND, token_hash, purposes, now)

    async def take(
        self, token_hash: bytes, purposes: Sequence[TokenPurpose], now: datetime
    ) -> MailToken | None:
        """Delete the token and return it, if it is still good."""
        return await self._one(_token, TAKE, token_hash, purposes, now)

    async def hand_over(self, claim_id: UUID, user_id: UUID) -> None:
        """Give the claim's tokens to the account that the claim has become."""
        await self._connection.execute(HAND_OVER, claim_id, user_id)

    async def delete(self, token_hash: bytes) -> None:
        await self._connection.execute(DELETE, token_hash)

    async def delete_of_user(self, user_id: UUID) -> None:
        await self._connection.execute(DELETE_OF_USER, user_id)


def _token(row: Any) -> MailToken:
    members = dict(row)
    email = Email(members.pop("email"), members.pop("email_key"))
    return MailToken(**{**members, "purpose": TokenPurpose(row["purpose"]), "email": email})
