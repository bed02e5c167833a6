"""What is known about an e-mail: whether mail to it arrives, and at whom."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from disposable_email_domains import blocklist

from service.domain.emails import Email, parse_email
from service.domain.errors import EmailMalformed

LOCAL: Final = "local"
"""`source` of what was found out without asking anybody."""


class Verdict(StrEnum):
    """Hunter's words for it, which this service uses too."""

    VALID = "valid"
    INVALID = "invalid"
    ACCEPT_ALL = "accept_all"
    WEBMAIL = "webmail"
    DISPOSABLE = "disposable"
    UNKNOWN = "unknown"

    @property
    def is_bad(self) -> bool:
        """Whether an account with such an e-mail has to confirm it. The others change nothing."""
        return self in {Verdict.INVALID, Verdict.DISPOSABLE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A verdict, whose it is, and from when."""

    verdict: Verdict
    source: str
    checked_at: datetime


def is_disposable(email: Email) -> bool:
    """Whether the e-mail is of a service that gives throw-away ones, or of a subdomain of it."""
    labels = email.key.partition("@")[2].split(".")
    return any(".".join(labels[start:]) in blocklist for start in range(len(labels) - 1))


def verify_locally(text: str) -> tuple[Verdict, Email | None]:
    """Return what syntax and the list of disposable domains tell, and the e-mail if it is one."""
    try:
        email = parse_email(text)
    except EmailMalformed:
        return Verdict.INVALID, None
    return (Verdict.DISPOSABLE if is_disposable(email) else Verdict.UNKNOWN), email
