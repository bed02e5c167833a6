"""Answers written without their schema, for speed, are what the schema would write."""

from datetime import UTC, datetime
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from service.api.http.responses import to_json
from service.api.ledger import BalancesSchema, TransfersSchema, write_balances, write_transfers
from service.api.referral_codes import PublicReferralCodeSchema, write_public
from service.api.referrals import ReferralsSchema, write_page
from service.api.rewards import RewardsSchema, write_rewards
from service.domain.ledger import Account, Balance, ListedTransfer, TransferKind
from service.domain.pages import BalanceCursor, Cursor, Page
from service.domain.referral_codes import PublicReferralCode
from service.domain.referrals import Referral, ReferralFlag, ReferralState
from service.domain.rewards import ListedReward, RewardState

MOMENTS = st.datetimes(
    datetime(1970, 1, 1),  # noqa: DTZ001  # hypothesis adds the zone
    datetime(9000, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),  # as asyncpg returns them
)
CODES = st.from_regex("[0-9A-Z-]{4,32}", fullmatch=True)
REFERRALS = st.builds(
    Referral,
    user_id=st.uuids(),
    email=st.none() | st.text(),
    registered_at=MOMENTS,
    code=CODES,
    flags=st.lists(st.sampled_from(list(ReferralFlag))),
    state=st.sampled_from(list(ReferralState)),
    state_changed_at=MOMENTS,
)


REWARDS = st.builds(
    ListedReward,
    rule=st.text(),
    to=st.sampled_from(["referrer", "referee"]),
    unit=st.text(),
    state=st.sampled_from(RewardState),
    available_at=MOMENTS,
    created_at=MOMENTS,
)
TRANSFERS = st.builds(
    ListedTransfer,
    kind=st.sampled_from(TransferKind),
    from_account=st.sampled_from(Account),
    to_account=st.sampled_from(Account),
    created_at=MOMENTS,
    cancelled_at=st.none() | MOMENTS,
    note=st.none() | st.text(),
)
BALANCES = st.builds(Balance, unit=st.text())
BALANCE_CURSORS = st.none() | st.builds(
    BalanceCursor, participant_id=st.uuids(), unit=st.from_regex("[A-Za-z]+", fullmatch=True)
)
CURSORS = st.none() | st.builds(Cursor, at=MOMENTS, row_id=st.uuids())


@given(st.builds(PublicReferralCode, expires_at=MOMENTS))
def test_a_referral_code_for_anyone(code: PublicReferralCode) -> None:
    assert write_public(code) == to_json(PublicReferralCodeSchema().dump(code))


@given(st.lists(REFERRALS, max_size=3), CURSORS)
def test_a_page_of_referrals(items: list[Referral], cursor: Cursor | None) -> None:
    page = Page(items, cursor)
    assert write_page(page) == to_json(ReferralsSchema().dump(page))


@given(st.lists(REWARDS, max_size=3), CURSORS)
def test_a_page_of_rewards(items: list[ListedReward], cursor: Cursor | None) -> None:
    page = Page(items, cursor)
    assert write_rewards(page) == to_json(RewardsSchema().dump(page))


@given(st.lists(TRANSFERS, max_size=3), CURSORS)
def test_a_page_of_transfers(items: list[ListedTransfer], cursor: Cursor | None) -> None:
    page = Page(items, cursor)
    assert write_transfers(page) == to_json(TransfersSchema().dump(page))


@given(st.lists(BALANCES, max_size=3), BALANCE_CURSORS)
def test_a_page_of_balances(items: list[Balance], cursor: BalanceCursor | None) -> None:
    page = Page(items, cursor)
    assert write_balances(page) == to_json(BalancesSchema().dump(page))


@given(st.uuids(), MOMENTS)
def test_times_and_ids_beside_what_no_utf_8_can_have(row_id: UUID, moment: datetime) -> None:
    """Which orjson refuses, so json.dumps writes it."""
    items = {"id": row_id, "at": moment, "name": "?"}
    assert to_json({**items, "name": "\ud800"}) == to_json(items)
