"""What a referral code is, and the rules for issuing and changing one."""

import re
import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.errors import ExpiryOutOfRange, InvalidInput

ALPHABET: Final = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"  # no 0 O 1 I L: people read codes aloud
CODE_LENGTH: Final = 10
LONGEST_LIFE_DAYS: Final = 366
LARGEST_MAX_USES: Final = 1_000_000_000
UNUSED_KEPT_FOR: Final = timedelta(days=90)
"""How long an ended code that was never used stays in its owner's list."""
_LOOK_ALIKES: Final = str.maketrans("OIL", "011")
_CHOSEN_CODE: Final = re.compile(r"[0-9A-Z-]{4,32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferralCode:
    """A code as its owner sees it. `max_uses` None means unlimited."""

    referral_code_id: UUID
    owner_id: UUID
    code: str
    created_at: datetime
    expires_at: datetime
    max_uses: int | None = None
    uses: int = 0


class ReferralCodeState(StrEnum):
    """Whether a code lives, or why it ended."""

    LIVE = "live"
    EXPIRED = "expired"
    DELETED = "deleted"
    REPLACED = "replaced"
    USED_UP = "used-up"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnReferralCode:
    """A code in its owner's list. `ended_at` is None while it lives."""

    referral_code_id: UUID
    code: str
    created_at: datetime
    expires_at: datetime
    max_uses: int | None
    uses: int
    state: ReferralCodeState
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicReferralCode:
    """What anyone may learn about a live code."""

    code: str
    expires_at: datetime
    referrer_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenReferralCode:
    """A code of which a use was just counted; `used_up` if it was the last one.

    `version` is the newest one of the rules of its programme. The owner's standing has been locked,
    so that other sign-ups wait for this one, unless there is none yet.
    """

    referral_code_id: UUID
    owner_id: UUID
    owner_email_key: str | None
    programme_id: UUID
    programme: str
    version: int
    is_standing_locked: bool
    code: str
    max_uses: int | None
    used_up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedReferralCode:
    """What ending an owner's code found: a code that `was_there`, and whether it is now ended."""

    was_there: bool
    ended: bool
    was_live: bool
    owner_email_key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewReferralCode:
    """What the owner asks for: exactly one of `expires_at` and `expires_in_days`."""

    expires_at: datetime | None = None
    expires_in_days: int | None = None
    code: str | None = None
    max_uses: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferralCodeChange:
    """What the owner changes of a live code; None leaves it unchanged."""

    expires_at: datetime | None = None
    expires_in_days: int | None = None
    max_uses: int | None = None


def issue_referral_code(owner_id: UUID, wish: NewReferralCode, now: datetime) -> ReferralCode:
    """Return a new code of `owner_id` as wished; raise InvalidInput or ExpiryOutOfRange."""
    return ReferralCode(
        referral_code_id=uuid7(),
        owner_id=owner_id,
        code=generate_code() if wish.code is None else normalise_code(wish.code),
        created_at=now,
        expires_at=_expiry(wish.expires_at, wish.expires_in_days, now),
        max_uses=wish.max_uses,
    )


def change_referral_code(
    code: ReferralCode, change: ReferralCodeChange, now: datetime
) -> ReferralCode:
    """Return the changed code; raise InvalidInput or ExpiryOutOfRange."""
    expires_at, max_uses = code.expires_at, code.max_uses
    if change.expires_at is not None or change.expires_in_days is not None:
        expires_at = _expiry(change.expires_at, change.expires_in_days, now)
    if change.max_uses is not None:
        max_uses = change.max_uses
        if max_uses < code.uses:
            raise InvalidInput(
                f"The code has been used {code.uses} times already.", field="max_uses"
            )
    return replace(code, expires_at=expires_at, max_uses=max_uses)


def generate_code() -> str:
    """Return a random code of 49 bits."""
    return "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))


def normalise_code(text: str) -> str:
    """Return the form in which codes are stored and compared; raise InvalidInput.

    White space around it is ignored: people paste codes from mails.
    """
    typed = text.strip()
    code = typed.upper()
    # isascii() before upper(), which turns some other letters into ASCII.
    if not typed.isascii() or not _CHOSEN_CODE.fullmatch(code):
        raise InvalidInput(
            "A code consists of 4 to 32 characters: A-Z, 0-9 and hyphens.", field="code"
        )
    return code


def are_alike(one: str, other: str) -> bool:
    """Whether two normalised codes differ in look-alikes at most, and so are the same name."""
    return one.translate(_LOOK_ALIKES) == other.translate(_LOOK_ALIKES)


def _expiry(expires_at: datetime | None, expires_in_days: int | None, now: datetime) -> datetime:
    if (expires_at is None) == (expires_in_days is None):
        raise ExpiryOutOfRange("Give exactly one of expires_at and expires_in_days.")
    if expires_in_days is not None:
        if not 1 <= expires_in_days <= LONGEST_LIFE_DAYS:
            raise ExpiryOutOfRange(
                f"A code lives 1 to {LONGEST_LIFE_DAYS} days.", field="expires_in_days"
            )
        return now + timedelta(days=expires_in_days)
    assert expires_at is not None
    check_expiry(expires_at, now)
    return expires_at


def check_expiry(expires_at: datetime, now: datetime) -> None:
    """Raise ExpiryOutOfRange unless a code may expire then."""
    if not now < expires_at <= now + timedelta(days=LONGEST_LIFE_DAYS):
        raise ExpiryOutOfRange
