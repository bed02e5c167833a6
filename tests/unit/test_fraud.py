"""What fraud rules make of suspicions."""

import pytest

from service.domain.fraud import Suspicions, judge
from service.domain.programmes import FraudRules
from service.domain.referrals import ReferralFlag, ReferralReason, Review

RULES = FraudRules(self_referral="hold", same_device="reject", same_ip="flag", velocity="off")


@pytest.mark.parametrize(
    ("suspicions", "flags", "review", "reason"),
    [
        ({}, [], None, None),
        ({"velocity"}, [], None, None),
        ({"same_ip"}, ["same-ip"], None, None),
        ({"same_ip", "self_referral"}, ["self-referral", "same-ip"], "open", "self-referral"),
        ({"self_referral", "same_device"}, ["self-referral", "same-device"], "rejected",
         "same-device"),
    ],
)  # fmt: skip
def test_the_strictest_rule_decides(
    suspicions: set[str], flags: list[str], review: str | None, reason: str | None
) -> None:
    verdict = judge(RULES, Suspicions(**dict.fromkeys(suspicions, True)))
    assert list(verdict.flags) == flags
    assert verdict.review == (review and Review(review))
    assert verdict.reason == (reason and ReferralReason(reason))


def test_every_flag_is_a_suspicion_a_rule_and_a_reason() -> None:
    for flag in ReferralFlag:
        name = flag.name.lower()
        assert hasattr(Suspicions(), name)
        assert hasattr(FraudRules(), name)
        assert ReferralReason(flag.value)
