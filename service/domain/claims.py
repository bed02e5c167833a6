"""Claims: registrations that are waiting for their email address to be confirmed."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from service.domain.emails import Email
from service.domain.identities import Identity

CLAIM_LIVES: Final = timedelta(hours=24)
MOST_RESENT: Final = 3
"""How many claims of one email address get their mail again, the newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A registration that becomes the account once its own token comes back.

    Until then it signs nobody in, and its code counts no use. It has either a password or an
    identity.
    """

    claim_id: UUID
    email: Email
    password_hash: str | None
    identity: Identity | None
    referral_code_id: UUID | None
    created_at: datetime
    expires_at: datetime
