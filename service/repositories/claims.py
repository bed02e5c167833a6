"""The SQL of claims: registrations that wait for their confirmation."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.claims import Claim
from service.domain.emails import Email
from service.domain.errors import ReferralCodeUnusable
from service.domain.identities import Identity
from service.repositories.connection import Repository
from service.repositories.constraints import on_violation

INSERT: Final = """
    INSERT INTO claims (claim_id, email, email_key, password_hash, issuer, subject,
                        referral_code_id, created_at, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""

FIND: Final = """
    SELECT claim_id, email, email_key, password_hash, issuer, subject,
           referral_code_id, created_at, expires_at
      FROM claims
     WHERE claim_id = $1
       AND expires_at > $2
"""

NEWEST_OF_EMAIL: Final = """
    SELECT claim_id
      FROM claims
     WHERE email_key = $1
       AND expires_at > $2
     ORDER BY claim_id DESC
     LIMIT $3
"""

# All of them, in one order: of two confirmations one waits here, instead of each for what the other
# is about to delete.
LOCK_FOR_CONFIRMATION: Final = """
    SELECT claim_id
      FROM claims
     WHERE email_key = (SELECT email_key FROM mail_tokens WHERE token_hash = $1)
     ORDER BY claim_id
       FOR UPDATE
"""

DELETE: Final = """
    DELETE FROM claims
     WHERE claim_id = $1
"""

DELETE_OF_EMAIL: Final = """
    DELETE FROM claims
     WHERE email_key = $1
"""


class ClaimRepository(Repository):
    """Claims, one statement per method. With a claim its mailed tokens are deleted."""

    async def add(self, claim: Claim) -> None:
        """Store it; raise ReferralCodeUnusable if the row of its code is gone."""
        with on_violation({"claims_referral_code_exists": ReferralCodeUnusable}):
            await self._connection.execute(
                INSERT,
                claim.claim_id,
                claim.email.shown,
                claim.email.key,
                claim.password_hash,
                claim.identity and claim.identity.issuer,
                claim.identity and claim.identity.subject,
                claim.referral_code_id,
                claim.created_at,
                claim.expires_at,
            )

    async def find(self, claim_id: UUID, at: datetime) -> Claim | None:
        """Return the claim if it lives at that time."""
        row = await self._connection.fetchrow(FIND, claim_id, at)
        if row is None:
            return None
        members = dict(row)
        email = Email(members.pop("email"), members.pop("email_key"))
        issuer, subject = members.pop("issuer"), members.pop("subject")
        identity = None
        if issuer is not None:
            identity = Identity(issuer=issuer, subject=subject, email=email, email_verified=False)
        return Claim(**members, email=email, identity=identity)

    async def newest_of_email(self, email_key: str, at: datetime, limit: int) -> Sequence[UUID]:
        """Return up to `limit` claims of the address that live at that time, newest first."""
        rows = await self._connection.fetch(NEWEST_OF_EMAIL, email_key, at, limit)
        return [row["claim_id"] for row in rows]

    async def lock_for_confirmation(self, token_hash: bytes) -> None:
        """Allow one confirmation at a time of the address that the token was mailed to."""
        await self._connection.fetch(LOCK_FOR_CONFIRMATION, token_hash)

    async def delete(self, claim_id: UUID) -> None:
        await self._connection.execute(DELETE, claim_id)

    async def delete_of_email(self, email_key: str) -> None:
        await self._connection.execute(DELETE_OF_EMAIL, email_key)
