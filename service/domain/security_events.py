"""What happens to an account that its owner or an operator wants to know."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

KEPT_FOR: Final = timedelta(days=90)
"""How long an account's owner sees its events."""


class SecurityEvent(StrEnum):
    """Stable names, in the log and in the owner's list: nothing is ever renamed."""

    SIGN_IN_SUCCEEDED = "sign_in.succeeded"
    SIGN_IN_FAILED = "sign_in.failed"
    SESSION_ENDED = "session.ended"
    REFRESH_TOKEN_REUSED = "refresh_token.reused"  # noqa: S105  # a name
    AUTHORIZATION_CODE_REUSED = "authorization_code.reused"
    IDENTITY_LINKED = "identity.linked"
    IDENTITY_UNLINKED = "identity.unlinked"
    PASSWORD_CHANGED = "password.changed"  # noqa: S105  # a name
    PASSWORD_RESET = "password.reset"  # noqa: S105  # a name
    EMAIL_CONFIRMED = "email.confirmed"
    EMAIL_CHANGE_REQUESTED = "email.change_requested"
    EMAIL_CHANGED = "email.changed"
    CHANGE_UNDONE = "change.undone"
    ACCOUNT_REGISTERED = "account.registered"
    ACCOUNT_RECLAIMED = "account.reclaimed"
    """The owner of the email address took over an account that had never confirmed it."""
    ACCOUNT_DISABLED = "account.disabled"
    ACCOUNT_ENABLED = "account.enabled"
    ACCOUNT_ERASED = "account.erased"
    ADMIN_PROMOTED = "admin.promoted"
    ADMIN_DEMOTED = "admin.demoted"
    CLIENT_CREATED = "client.created"
    CLIENT_UPDATED = "client.updated"
    CLIENT_DELETED = "client.deleted"
    CLIENT_REFUSED = "client.refused"
    REFERRAL_FLAGGED = "referral.flagged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a request came from. All None for what an operator or a job does.

    `address` is the /24 or the /64 of the client.
    """

    request_id: str | None = None
    address: str | None = None
    user_agent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """A security event as the owner of the account sees it."""

    security_event_id: UUID
    event: str
    occurred_at: datetime
    address: str | None
    user_agent: str | None
