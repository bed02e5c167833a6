"""Email addresses: which are accepted, and which count as the same."""

import hmac
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from email_validator import EmailNotValidError, validate_email

from service.domain.errors import EmailMalformed
from service.domain.programmes import DEFAULT_PROGRAMME_ID


@dataclass(frozen=True, slots=True)
class Email:
    """An email address as given (`shown`), and the key that all its spellings share."""

    shown: str
    key: str

    @property
    def mailbox(self) -> str:
        """The address for mail servers: the local part as given, the domain in ASCII."""
        return f"{self.shown.rpartition('@')[0]}@{self.key.rpartition('@')[2]}"


_GMAIL: Final = frozenset({"gmail.com", "googlemail.com"})


def fold_mailbox(email_key: str) -> str:
    """Return what the addresses of one mailbox have in common, as far as known.

    A tag after `+` is removed everywhere, Gmail's dots and second domain at Gmail. Two accounts may
    share a mailbox: it limits mails and flags referrals, but identifies nobody.
    """
    local_part, _, domain = email_key.rpartition("@")
    local_part = local_part.partition("+")[0] or local_part
    if domain in _GMAIL:
        local_part, domain = local_part.replace(".", ""), "gmail.com"
    return f"{local_part}@{domain}"


def hash_mailbox(email_key: str, hash_key: bytes) -> bytes:
    """Return the mailbox's pseudonym in the database, which cannot be computed without the key."""
    return hmac.digest(hash_key, b"mailbox " + fold_mailbox(email_key).encode(), "sha256")


# What the parser leaves unchanged. No two hyphens in a row, as in IDNA's "xn--".
_PLAIN: Final = re.compile(
    r"[a-z0-9]+(?:[._+-][a-z0-9]+)*@(?:[a-z0-9]+(?:-[a-z0-9]+)*\.)+[a-z]{2,63}", re.ASCII
)


def key_of(text: str) -> str:
    """Return the key to look up an email address by; raise EmailMalformed.

    A plain text is its own key, unchecked, which saves the parser's 20 µs: to store an account,
    parse the address. White space around it is ignored.
    """
    return text if _PLAIN.fullmatch(text) else parse_email(text.strip()).key


_ENCODED_WORD: Final = re.compile(r"=\?[^?]*\?[^?]*\?[^?]*\?=")
"""RFC 2047, 2. A local part may have `=` before `?` and be none."""
_allowed_domains: Final[set[str]] = set()


def allow_domains(domains: Iterable[str]) -> None:
    """Accept these domains and their subdomains in this process.

    Only domains that no public address has, such as `local` or `localhost`, need it.
    """
    _allowed_domains.clear()
    _allowed_domains.update(domains)


def parse_email(text: str, allowed: Collection[str] = _allowed_domains) -> Email:
    """Return the email address in `text`; raise EmailMalformed with the reason.

    The local part is ASCII: libraries differ in what they take for the same letter, and two that
    disagree about a key is how accounts get stolen (CVE-2019-19844). Nor may it look like an
    encoded word (RFC 2047), which a mail's header would turn into another address.
    """
    special = _allowed_domain_of(text, allowed) if allowed else ""
    try:
        text.encode()  # a lone surrogate is no text
        parsed = validate_email(
            # The library rejects every special domain but this one, which stands in for it.
            f"{text[: -len(special)]}test" if special else text,
            check_deliverability=False,  # it would wait for the DNS
            allow_smtputf8=False,
            test_environment=True,  # *.test: names reserved for tests
        )
    except UnicodeEncodeError as error:
        raise EmailMalformed from error
    except EmailNotValidError as error:
        raise EmailMalformed(str(error)) from error
    if _ENCODED_WORD.search(parsed.local_part):
        raise EmailMalformed("The part before the @-sign cannot stand in the header of a mail.")
    domain = parsed.ascii_domain
    if special:
        domain = f"{domain.removesuffix('test')}{special}"
    return Email(text, f"{parsed.local_part.lower()}@{domain}")


def _allowed_domain_of(text: str, allowed: Collection[str]) -> str:
    domain = f".{text.rpartition('@')[2].lower()}"
    return next((special for special in allowed if domain.endswith(f".{special}")), "")


def hash_email(email: Email, programme_id: UUID, hash_key: bytes) -> bytes:
    """Return what an email address is referred once by in a programme, for ever.

    Other programmes have other hashes: one constraint on the hash alone serves all.
    """
    of_programme = b"" if programme_id == DEFAULT_PROGRAMME_ID else b"%b " % programme_id.bytes
    return hmac.digest(hash_key, b"e-mail " + of_programme + email.key.encode(), "sha256")
