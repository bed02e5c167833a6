"""What a referral is: somebody who signed up with another's code, and what followed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple
from uuid import UUID

from service.domain.referral_codes import TakenReferralCode


class ReferralFlag(StrEnum):
    """What is suspicious about a referral, which counts all the same."""

    SELF_REFERRAL = "self-referral"
    """The mailbox is the referrer's, or that of another referral of the same referrer."""
    SAME_DEVICE = "same-device"
    """The referrer, or another referee of the same referrer, has the device."""
    SAME_IP = "same-ip"
    """The referrer, or two other referees of late, had the network address."""
    DISPOSABLE_EMAIL = "disposable-email"
    """The email address is of a service of throw-away addresses."""
    VELOCITY = "velocity"
    """The referrer has more sign-ups within an hour than people make."""


class ReferralState(StrEnum):
    """What has become of a referral."""

    PENDING = "pending"
    QUALIFIED = "qualified"
    REWARDED = "rewarded"
    REJECTED = "rejected"
    REVERSED = "reversed"


class Review(StrEnum):
    """What a person has decided about a referral, or is to decide."""

    NONE = "none"
    OPEN = "open"
    APPROVED = "approved"
    REJECTED = "rejected"


class ReferralReason(StrEnum):
    """Why a referral is in its state."""

    SIGNED_UP = "signed-up"
    QUALIFIED = "qualified"
    REFUNDED = "refunded"
    WINDOW_PASSED = "window-passed"
    HOLD_OVER = "hold-over"
    CAP_REACHED = "cap-reached"
    SELF_REFERRAL = "self-referral"
    SAME_DEVICE = "same-device"
    SAME_IP = "same-ip"
    DISPOSABLE_EMAIL = "disposable-email"
    VELOCITY = "velocity"
    REVIEW_APPROVED = "review-approved"
    REVIEW_REJECTED = "review-rejected"


SYSTEM: Final = "system"
"""Who made a decision that nobody asked for; others are `client:ID` or `user:ID`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgrammeReferral:
    """A referral as its programme sees it, under the rules of `version`.

    Its referee's `participant_id` is its id. `sequence` counts its decisions.
    """

    referral_id: UUID
    programme_id: UUID
    programme: str
    version: int
    referrer_id: UUID
    code: str
    state: ReferralState
    reason: ReferralReason
    review: Review
    flags: Sequence[str]
    sequence: int
    nth: int | None
    registered_at: datetime
    window_ends_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewReferral:
    """A sign-up with the code `taken`. The hashes are keyed; None: no email address is known."""

    referee_id: UUID
    taken: TakenReferralCode
    registered_at: datetime
    made_by: str
    email_hash: bytes | None = None
    mailbox_hash: bytes | None = None
    flagged: bool = False
    """Whether the mailbox is the referrer's own."""
    signals: Mapping[str, bytes] = field(default_factory=dict)
    """Keyed hashes of what is known of the person, by kind."""
    disposable_email: bool = False

    def begin(
        self, flags: Sequence[ReferralFlag], window_ends_at: datetime | None
    ) -> ProgrammeReferral:
        """Return the referral before the first decision about it."""
        return ProgrammeReferral(
            referral_id=self.referee_id,
            programme_id=self.taken.programme_id,
            programme=self.taken.programme,
            version=self.taken.version,
            referrer_id=self.taken.owner_id,
            code=self.taken.code,
            state=ReferralState.PENDING,
            reason=ReferralReason.SIGNED_UP,
            review=Review.NONE,
            flags=flags,
            sequence=0,
            nth=None,
            registered_at=self.registered_at,
            window_ends_at=window_ends_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferralFilter:
    """Which referrals of a programme are wanted; None stands for all."""

    programme: str
    state: ReferralState | None = None
    review: Review | None = None
    referrer_id: UUID | None = None
    oldest_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A change of a referral, and why. It never changes itself."""

    referral_id: UUID
    sequence: int
    state: ReferralState
    review: Review
    reason: ReferralReason
    made_by: str
    event_id: UUID | None
    detail: str | None
    decided_at: datetime
    event_external_id: str | None = None
    """The company's id of the event, where a decision is read."""


class Referral(NamedTuple):  # which is made in a third of a dataclass' time, a hundred a page
    """One referral as the referrer sees it.

    `email` is None once the account is erased, and of a referee whom only a company knows.
    """

    user_id: UUID
    email: str | None
    registered_at: datetime
    code: str
    flags: Sequence[str]
    state: str
    state_changed_at: datetime
