"""What a referral is: a user who registered with another user's code."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID


class ReferralFlag(StrEnum):
    """What is suspicious about a referral, which counts all the same."""

    SELF_REFERRAL = "self-referral"
    """The mailbox is the referrer's, or that of another referral of the same referrer."""


class Referral(NamedTuple):  # which is made in a third of a dataclass' time, a hundred a page
    """One referral as the referrer sees it. `email` is None once the account is erased."""

    user_id: UUID
    email: str | None
    registered_at: datetime
    code: str
    flags: Sequence[str] = ()
