"""The mails that the service writes, and the tokens in them."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from service.domain.users import Email

TOKEN_LIVES: Final = timedelta(minutes=10)
"""OWASP ASVS 5.0, 6.5.5."""
MOST_LIVE_TOKENS: Final = 3
"""Of one account for one purpose: nobody fills somebody else's mailbox with more."""


class MailKind(StrEnum):
    """Why a mail is written. What it says depends on the account when it is sent."""

    REGISTRATION = "registration"
    """Somebody has made an account with the e-mail."""
    REGISTERED_AGAIN = "registered_again"
    """Somebody has registered with an e-mail that had an account before."""
    CONFIRMATION = "confirmation"
    """Somebody wants to be sent the confirmation once more."""
    PASSWORD_RESET = "password_reset"  # noqa: S105  # a name
    PASSWORD_CHANGED = "password_changed"  # noqa: S105  # a name
    EMAIL_CHANGE = "email_change"
    """To the new address, which has to be confirmed before it counts."""
    EMAIL_CHANGED = "email_changed"
    """To the old address."""
    PROMOTED = "promoted"
    """An operator has made the account an admin's."""


class TokenPurpose(StrEnum):
    """What whoever has the token may do."""

    CONFIRM_EMAIL = "confirm_email"
    CHANGE_EMAIL = "change_email"
    RESET_PASSWORD = "reset_password"  # noqa: S105  # a name


@dataclass(frozen=True, slots=True, kw_only=True)
class MailToken:
    """A token that was mailed to `email`, and proves that its sender reads the mail there."""

    token_hash: bytes
    purpose: TokenPurpose
    user_id: UUID
    email: Email
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A mail before it gets its layout: plain text in paragraphs.

    A mail with a token says where to send it: to the page `link` leads to, or in `call`.
    """

    subject: str
    paragraphs: tuple[str, ...]
    token: str | None = None
    link: str | None = None
    call: str | None = None


def confirmation(service: str, token: str, link: str | None) -> Mail:
    return Mail(
        subject=f"Confirm your e-mail for {service}",
        paragraphs=(
            f"Somebody, we hope you, has registered at {service} with this e-mail.",
            "Confirm within 10 minutes that it is yours. If it was not you, do nothing.",
        ),
        token=token,
        link=link,
        call="POST /api/v1/auth/email/confirm",
    )


def account_exists(service: str) -> Mail:
    return Mail(
        subject=f"You have an account at {service}",
        paragraphs=(
            f"Somebody has tried to register at {service} with this e-mail, which has an account.",
            (
                "If it was you, sign in, or reset your password if you have forgotten it. "
                "If it was not, do nothing: nothing has changed."
            ),
        ),
    )


def registered_again(service: str, token: str, link: str | None) -> Mail:
    return Mail(
        subject=f"Finish registering at {service}",
        paragraphs=(
            (
                f"Somebody, we hope you, has registered at {service} with this e-mail, "
                "and not for the first time."
            ),
            (
                "Choose a new password within 10 minutes: nobody can tell whose the others were. "
                "If it was not you, do nothing."
            ),
        ),
        token=token,
        link=link,
        call="POST /api/v1/auth/password/reset",
    )


def password_reset(service: str, token: str, link: str | None) -> Mail:
    return Mail(
        subject=f"Reset your password for {service}",
        paragraphs=(
            f"Somebody, we hope you, wants to set a new password for your account at {service}.",
            (
                "You can do so within 10 minutes. If it was not you, do nothing: "
                "your password stays as it is."
            ),
        ),
        token=token,
        link=link,
        call="POST /api/v1/auth/password/reset",
    )


def password_changed(service: str) -> Mail:
    return Mail(
        subject=f"Your password for {service} was changed",
        paragraphs=(
            (
                f"The password of your account at {service} was changed, "
                "and you were signed out everywhere else."
            ),
            "If it was not you, reset your password at once.",
        ),
    )


def email_change(service: str, token: str, link: str | None) -> Mail:
    return Mail(
        subject=f"Confirm your new e-mail for {service}",
        paragraphs=(
            f"Somebody, we hope you, wants to use this e-mail for an account at {service}.",
            "Confirm within 10 minutes that it is yours. If it was not you, do nothing.",
        ),
        token=token,
        link=link,
        call="POST /api/v1/auth/email/confirm",
    )


def email_changed(service: str) -> Mail:
    return Mail(
        subject=f"Your e-mail for {service} was changed",
        paragraphs=(
            (
                f"Your account at {service} has another e-mail from now on; "
                "this one is no longer used for it."
            ),
            "If it was not you, tell the operators of the service.",
        ),
    )


def promoted(service: str) -> Mail:
    return Mail(
        subject=f"You are now an admin of {service}",
        paragraphs=(
            f"An operator of {service} has made your account an admin's. Please sign in again.",
            "If you did not expect this, contact the operators of the service.",
        ),
    )
