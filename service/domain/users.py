"""Who has an account."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from service.domain.email_verification import Verification
from service.domain.emails import Email


class Role(StrEnum):
    """What a user may do; see domain/scopes.py."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account as its owner sees it. `email` is None once the account is erased."""

    user_id: UUID
    email: str | None
    email_confirmed: bool
    role: Role
    created_at: datetime
    disabled: bool
    referrer_id: UUID | None
    awaits_confirmation: bool = False
    """Whether signing in has to wait until the email address is confirmed."""
    email_verification: Verification | None = None
    referral_flags: tuple[str, ...] = ()
    """What is suspicious about the account as a referral."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """An admin as operators see one. `promoted_at` is None for those of older releases."""

    user_id: UUID
    email: str
    email_confirmed: bool
    promoted_at: datetime | None
    disabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedUser:
    """What cannot change of an account until the transaction that has locked it ends."""

    user_id: UUID
    role: Role
    email: Email
    email_confirmed: bool
