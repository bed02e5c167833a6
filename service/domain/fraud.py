"""Fraud: what is suspicious about a sign-up, and what the rules make of that."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from service.domain.programmes import FraudAction, FraudRules
from service.domain.referrals import ReferralFlag, ReferralReason, Review

REFERRER_SEEN_WITHIN: Final = timedelta(days=30)
REFEREES_SEEN_WITHIN: Final = timedelta(days=7)
"""A network address is shared by an office or a family; so long it counts."""
MOST_WITHIN_AN_HOUR: Final = 20
"""Sign-ups of a referrer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicions:
    """What is the case about a sign-up. Nobody looks for it where the referrer is trusted."""

    self_referral: bool = False
    same_device: bool = False
    same_ip: bool = False
    disposable_email: bool = False
    velocity: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FraudVerdict:
    """What is shown about a sign-up, and how it begins: with a review, or rejected, for a reason.

    `review` is None where it is only shown.
    """

    flags: Sequence[ReferralFlag]
    review: Review | None
    reason: ReferralReason | None


_STRICTER: Final[Sequence[tuple[FraudAction, Review]]] = (
    ("reject", Review.REJECTED),
    ("hold", Review.OPEN),
)


def judge(rules: FraudRules, suspicions: Suspicions) -> FraudVerdict:
    """Return what follows: of several rules the strictest decides."""
    actions: dict[ReferralFlag, FraudAction] = {
        flag: action
        for flag in ReferralFlag
        if getattr(suspicions, flag.name.lower())
        and (action := getattr(rules, flag.name.lower())) != "off"
    }
    for action, review in _STRICTER:
        for flag, chosen in actions.items():
            if chosen == action:
                return FraudVerdict(
                    flags=list(actions), review=review, reason=ReferralReason(flag.value)
                )
    return FraudVerdict(flags=list(actions), review=None, reason=None)
