"""What webhooks say, how they are signed, and when they are sent again."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from standardwebhooks import Webhook

from service.domain import webhooks
from service.domain.ledger import Account, Transfer, TransferKind
from service.domain.programmes import Programme
from service.domain.referrals import ProgrammeReferral, ReferralReason, ReferralState, Review
from service.domain.rewards import Reward, RewardState
from service.domain.webhook_deliveries import (
    MOST_ATTEMPTS,
    Delivery,
    Secrets,
    rest_after,
    wait_after,
)
from service.domain.webhooks import Announcement, EventType

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
LARGEST = 10**12
LONGEST = '"' * 128
"""An external id that JSON makes as long as can be."""


def referral(**changes: object) -> ProgrammeReferral:
    members = {
        "referral_id": uuid4(),
        "programme_id": uuid4(),
        "programme": "x" * 32,
        "version": 2**31,
        "referrer_id": uuid4(),
        "code": "ANNA",
        "state": ReferralState.PENDING,
        "reason": ReferralReason.SIGNED_UP,
        "review": Review.NONE,
        "flags": ["self-referral", "same-device", "same-ip", "disposable-email", "velocity"],
        "sequence": 1,
        "nth": None,
        "registered_at": NOW,
        "window_ends_at": None,
    }
    return ProgrammeReferral(**{**members, **changes})  # type: ignore[arg-type]


PROGRAMME = Programme(
    programme_id=uuid4(),
    key="default",
    name="A name of its own",
    version=7,
    landing_url="https://shop.example.com/" + "x" * 1900,
    paused=True,
    leaderboard=False,
    ended_at=NOW,
    created_at=NOW,
)
REWARD = Reward(
    reward_id=uuid4(),
    programme_id=uuid4(),
    version=3,
    rule="x" * 32,
    participant_id=uuid4(),
    referral_id=uuid4(),
    cause_id=uuid4(),
    nth=0,
    unit="x" * 32,
    amount=LARGEST,
    reversed=LARGEST,
    state=RewardState.REVERSED,
    held=True,
    available_at=NOW,
    created_at=NOW,
)
REDEMPTION = Transfer(
    transfer_id=uuid4(),
    programme_id=uuid4(),
    participant_id=uuid4(),
    unit="EUR",
    kind=TransferKind.REDEMPTION,
    from_account=Account.AVAILABLE,
    to_account=Account.REDEEMED,
    amount=LARGEST,
    external_id=LONGEST,
    made_by="client:shop",
    created_at=NOW,
)
ANNOUNCEMENTS = [
    webhooks.participant_created("default", uuid4()),
    *webhooks.referral_created(referral(), referral()),
    *(
        announced
        for state in (
            ReferralState.QUALIFIED,
            ReferralState.REWARDED,
            ReferralState.REJECTED,
            ReferralState.REVERSED,
        )
        for announced in webhooks.referral_decided(referral(), referral(state=state), LONGEST)
    ),
    *(
        webhooks.reward_announcement(kind, "default", REWARD)
        for kind in (
            EventType.REWARD_CREATED,
            EventType.REWARD_AVAILABLE,
            EventType.REWARD_REVERSED,
        )
    ),
    *(
        webhooks.redemption_announcement(kind, "default", REDEMPTION)
        for kind in (EventType.REDEMPTION_CREATED, EventType.REDEMPTION_CANCELLED)
    ),
    webhooks.programme_changed(PROGRAMME),
    webhooks.endpoint_disabled(uuid4(), "failing"),
    webhooks.endpoint_test(uuid4()),
]


@pytest.mark.parametrize("announced", ANNOUNCEMENTS, ids=lambda one: one.type)
def test_a_message_is_small_and_names_its_participants(announced: Announcement) -> None:
    stored = announced.body(NOW)
    named = webhooks.participants_in(stored)
    body = webhooks.as_sent(stored, dict.fromkeys(named, LONGEST))
    assert len(body) < webhooks.LARGEST_BODY / 2
    document = json.loads(body)
    assert list(document) == ["type", "timestamp", "data"]
    assert document["timestamp"] == "2026-11-26T09:30:00Z"
    assert body.count(json.dumps(LONGEST).encode()) >= len(named)
    assert webhooks.participants_in(body) == set()
    assert body.count(b'external_id":"') == stored.count(b'external_id":"participant ')


def test_a_message_is_sent_with_the_companys_ids_whatever_they_are() -> None:
    """What looks like one of ours is the company's own: its ids have no spaces."""
    referee, referrer = uuid4(), uuid4()
    made = referral(referral_id=referee, referrer_id=referrer)
    event_id = f'"participant-{referee}"'
    announced = webhooks.referral_announcement(EventType.REFERRAL_QUALIFIED, made, event_id)
    stored = announced.body(NOW)
    assert webhooks.participants_in(stored) == {referee, referrer}
    sent = json.loads(webhooks.as_sent(stored, {referee: '\\1"\\g<0>', referrer: None}))["data"]
    assert sent["referral"]["external_id"] == '\\1"\\g<0>'
    assert sent["referral"]["referrer_external_id"] is None
    assert sent["event_id"] == event_id


def test_every_type_of_the_catalogue_is_announced_by_something() -> None:
    assert {announced.type for announced in ANNOUNCEMENTS} == set(EventType)
    assert [kind for kind in EventType if not kind.meaning.endswith(".")] == []


def test_a_decision_that_changes_nothing_is_not_announced() -> None:
    assert webhooks.referral_decided(referral(), referral(sequence=2)) == []
    pending = referral(state=ReferralState.REJECTED)
    assert webhooks.referral_decided(pending, referral()) == []  # approved, and waits again


def delivery(**changes: object) -> Delivery:
    members = {
        "job_id": uuid4(),
        "tries": 1,
        "message_id": uuid4(),
        "body": b"{}",
        "endpoint_id": UUID(int=7),
        "url": "https://hooks.example.com",
        "secret_number": 2,
        "previous_until": None,
        "failing_since": None,
    }
    return Delivery(**{**members, **changes})  # type: ignore[arg-type]


def test_the_previous_secret_signs_until_its_time_is_over() -> None:
    secrets, now = Secrets(b"k" * 32), datetime.now(UTC)
    sent = delivery(previous_until=now + timedelta(seconds=1))
    endpoint_id = sent.endpoint_id
    both = secrets.headers(sent, b'{"a":1}', now)
    for number in (1, 2):
        Webhook(secrets.text(endpoint_id, number)).verify(b'{"a":1}', both)
    late = secrets.headers(sent, b'{"a":1}', now + timedelta(seconds=1))
    assert " " in both["webhook-signature"]
    assert " " not in late["webhook-signature"]


def test_each_endpoint_key_and_number_has_a_secret_of_its_own() -> None:
    keys = [Secrets(b"k" * 32), Secrets(b"l" * 32)]
    ids = [UUID(int=1), UUID(int=2)]
    texts = {key.text(one, number) for key in keys for one in ids for number in (1, 2, 256)}
    assert len(texts) == 12
    assert all(text.startswith("whsec_") and len(text) == 50 for text in texts)


def test_waits_add_up_to_75_hours_and_are_up_to_a_fifth_longer() -> None:
    most = [wait_after(tries, None) for tries in range(1, MOST_ATTEMPTS + 1)]
    assert most.pop() is None
    total = sum((wait for wait in most if wait), timedelta())
    least = timedelta(hours=75, minutes=35, seconds=5)
    assert least <= total <= least * 1.2
    for _ in range(100):
        wait = wait_after(1, None)
        assert wait is not None
        assert timedelta(seconds=5) <= wait <= timedelta(seconds=6)


def test_retry_after_counts_up_to_a_day_and_shortens_nothing() -> None:
    assert wait_after(1, timedelta(hours=3)) == timedelta(hours=3)
    assert wait_after(1, timedelta(days=9)) == timedelta(days=1)
    shortened = wait_after(4, timedelta(seconds=1))
    assert shortened is not None
    assert shortened >= timedelta(hours=2)
    assert wait_after(MOST_ATTEMPTS, timedelta(hours=3)) is None


def test_rests_double_from_a_second_to_five_minutes() -> None:
    began, now = NOW, NOW
    rests: list[float] = []
    for _ in range(12):
        rest = rest_after(began if rests else None, now)
        rests.append(rest.total_seconds())
        now += rest
    assert rests == [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
