"""What a referral is: a user who registered with another user's code."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Referral:
    """One referral as the referrer sees it. `email` is None once the account is erased."""

    user_id: UUID
    email: str | None
    registered_at: datetime
    code: str
