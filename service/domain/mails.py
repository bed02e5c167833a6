"""The mails that the service writes, and the tokens in them."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from service.domain.emails import Email

TOKEN_LIVES: Final = timedelta(minutes=10)
"""OWASP ASVS 5.0, 6.5.5."""
MOST_MAILS_AN_HOUR: Final = 3
"""To one mailbox, whatever causes them, so that this service cannot be used to flood it."""
MOST_MAILS_A_DAY: Final = 10
MAILS_COUNTED_FOR: Final = timedelta(days=1)
KEPT_FOR_RESETS_AN_HOUR: Final = 1
"""Of these, reserved for password resets."""
KEPT_FOR_RESETS_A_DAY: Final = 3
RESET_HEAD_START: Final = timedelta(hours=1)
"""A password reset goes out before other mails that have waited for less than this."""
_CONFIRM: Final = (
    "Please confirm within the next 10 minutes that the address is yours. "
    "If this wasn't you, ignore this email."
)


class MailKind(StrEnum):
    """Why a mail is sent. Its text depends on the account at that time."""

    CLAIM = "claim"
    """Someone has registered with the email address, which has to be confirmed first."""
    REGISTRATION = "registration"
    """Someone has made an account with the email address."""
    REGISTERED_AGAIN = "registered_again"
    """As older releases planned for a registration with an address that had an account."""
    CONFIRMATION = "confirmation"
    """Someone asked for the confirmation again."""
    PASSWORD_RESET = "password_reset"  # noqa: S105  # a name
    PASSWORD_CHANGED = "password_changed"  # noqa: S105  # a name
    EMAIL_CHANGE = "email_change"
    """To the new address, which has to be confirmed before it counts."""
    EMAIL_CHANGED = "email_changed"
    """To an address that the account no longer has, without a way to undo it."""
    ACCOUNT_CHANGE = "account_change"
    """To the address that can undo a change of the account."""
    CHANGE_UNDONE = "change_undone"
    """To the address that the account has again."""
    PROMOTED = "promoted"
    """An operator made the account an admin."""
    WEBHOOK_DISABLED = "webhook_disabled"
    """To admins: the service has disabled an endpoint of webhooks."""


class Share(StrEnum):
    """Which part of a mailbox's budget a mail counts towards."""

    RESET = "reset"
    OTHER = "other"
    NOTICE = "notice"
    """Of something that happened to the account: always sent, but counted."""


class TokenPurpose(StrEnum):
    """What the token in a mail is good for."""

    CONFIRM_EMAIL = "confirm_email"
    CHANGE_EMAIL = "change_email"
    RESET_PASSWORD = "reset_password"  # noqa: S105  # a name


@dataclass(frozen=True, slots=True, kw_only=True)
class MailToken:
    """A token that was mailed to `email`, and proves access to that mailbox.

    It belongs to an account or a claim: exactly one of `user_id` and `claim_id` is given.
    """

    token_hash: bytes
    purpose: TokenPurpose
    user_id: UUID | None = None
    claim_id: UUID | None = None
    email: Email
    created_at: datetime
    expires_at: datetime
    session_id: UUID | None = None
    """The session that asked for a change of email address, and must still be open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A mail before layout: plain text in paragraphs.

    A token is used on the page at `link` or, without one, in `call`.
    """

    subject: str
    paragraphs: tuple[str, ...]
    token: str | None = None
    link: str | None = None
    call: str | None = None


def _mail(subject: str, *paragraphs: str) -> Mail:
    return Mail(subject=subject, paragraphs=paragraphs)


def confirmation(service: str, signed_up_at: datetime, *, has_rivals: bool) -> Mail:
    """`has_rivals`: other sign-ups with the same address await confirmation too."""
    when = f"{signed_up_at.day} {signed_up_at:%B %Y} at {signed_up_at:%H:%M} UTC"
    rivals = (
        "This address was used to sign up more than once. Each sign-up has its own password and "
        "its own email, and only the one you confirm counts, so please check that the time above "
        "is when you signed up."
    )
    return _mail(
        f"Confirm your email address for {service}",
        f"Someone (hopefully you) signed up for {service} with this email address on {when}.",
        *([rivals] if has_rivals else []),
        _CONFIRM,
    )


def account_exists(service: str) -> Mail:
    return _mail(
        f"You already have an account with {service}",
        f"Someone tried to use this email address for a new {service} account, but it already "
        "has one.",
        "If this was you, just sign in, or reset your password if you forgot it. If not, you can "
        "ignore this email: nothing has changed.",
    )


def password_reset(service: str) -> Mail:
    return _mail(
        f"Reset your password for {service}",
        f"Someone (hopefully you) asked for a new password for your {service} account.",
        "You can set one within the next 10 minutes. If this wasn't you, ignore this email: your "
        "password stays the same.",
    )


def password_changed(service: str) -> Mail:
    return _mail(
        f"Your password for {service} was changed",
        f"The password of your {service} account was changed, and you were signed out everywhere "
        "else.",
        "If this wasn't you, reset your password right away.",
    )


def email_change(service: str) -> Mail:
    return _mail(
        f"Confirm your new email address for {service}",
        f"Someone (hopefully you) wants to use this email address for a {service} account.",
        _CONFIRM,
    )


def email_changed(service: str, *, undoable: bool = False) -> Mail:
    return _mail(
        f"Your email address for {service} was changed",
        f"Your {service} account has a new email address and no longer uses this one.",
        "If this wasn't you, undo the change within the next 72 hours: your account gets this "
        "address back, and everyone is signed out of it."
        if undoable
        else f"If this wasn't you, please contact the operators of {service}.",
    )


def identity_linked(service: str, issuer: str) -> Mail:
    return _mail(
        f"A new way to sign in to your {service} account",
        f"You can now sign in to your {service} account with {urlsplit(issuer).hostname}. You "
        "were signed out everywhere else.",
        "If this wasn't you, undo it within the next 72 hours: it can then no longer be used to "
        "sign in, and everyone is signed out of your account.",
    )


def change_undone(service: str) -> Mail:
    return _mail(
        f"Choose a new password for {service}",
        f"Your {service} account has this email address again, and everyone has been signed out "
        "of it.",
        "Someone who could sign in to your account had changed the address. Choose a new password "
        "within the next 10 minutes, or ask for another email after that.",
    )


def promoted(service: str) -> Mail:
    return _mail(
        f"You are now an admin of {service}",
        f"An operator of {service} made you an admin. Please sign in again.",
        f"If you didn't expect this, please contact the operators of {service}.",
    )


def webhook_disabled(service: str, url: str, *, gone: bool) -> Mail:
    """Only the host of the URL is shown: the rest may be a secret."""
    reason = (
        "it responded with 410 (Gone)"
        if gone
        else "every attempt to deliver a webhook has failed for five days"
    )
    return _mail(
        f"{service} no longer sends webhooks to {urlsplit(url).hostname}",
        f"The webhook endpoint at {urlsplit(url).hostname} was disabled, because {reason}.",
        "Once it works again, enable it, and replay the messages that it missed with "
        "POST /api/v1/webhook-endpoints/{id}/replay.",
    )
