"""What is known about an email address: whether mail to it arrives."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from disposable_email_domains import blocklist

from service.domain.emails import Email, parse_email
from service.domain.errors import EmailMalformed

LOCAL: Final = "local"
"""`source` of a verdict made without a provider."""


class Verdict(StrEnum):
    """Hunter's terms."""

    VALID = "valid"
    INVALID = "invalid"
    ACCEPT_ALL = "accept_all"
    WEBMAIL = "webmail"
    DISPOSABLE = "disposable"
    UNKNOWN = "unknown"

    @property
    def is_bad(self) -> bool:
        """Whether an account with such an email address has to confirm it."""
        return self in {Verdict.INVALID, Verdict.DISPOSABLE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A verdict, its source and its time."""

    verdict: Verdict
    source: str
    checked_at: datetime


def is_disposable(email: Email) -> bool:
    """Whether the address belongs to a service of throw-away addresses, or a subdomain of one."""
    labels = email.key.partition("@")[2].split(".")
    return any(".".join(labels[start:]) in blocklist for start in range(len(labels) - 1))


def verify_locally(text: str) -> tuple[Verdict, Email | None]:
    """Return the verdict of syntax and the list of disposable domains, and the parsed address."""
    try:
        email = parse_email(text)
    except EmailMalformed:
        return Verdict.INVALID, None
    return (Verdict.DISPOSABLE if is_disposable(email) else Verdict.UNKNOWN), email
