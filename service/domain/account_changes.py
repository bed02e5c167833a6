"""Changes of an account that its owner can undo by mail: another email address, a new identity."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from service.domain.emails import Email
from service.domain.jobs import PARKED_FOR

UNDO_LIVES: Final = timedelta(hours=72)
"""From when the mail is sent."""
UNSENT_FOR: Final = PARKED_FOR + timedelta(days=1)
"""How long a change is kept while its mail is unsent: longer than sending is tried."""


class ChangeKind(StrEnum):
    """What was changed."""

    EMAIL = "email"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountChange:
    """A change, and what undoing it needs.

    `email` is where the mail goes: the address before the change, and whether it was confirmed; or
    the account's own if an identity was linked, which `issuer` and `subject` name.
    """

    account_change_id: UUID
    user_id: UUID
    kind: ChangeKind
    email: Email
    email_confirmed: bool
    issuer: str | None = None
    subject: str | None = None
    number: int = 0
    """Counts the account's changes; given when the change is stored."""
    password_changed: bool = False
    """Whether the password has been changed since."""
