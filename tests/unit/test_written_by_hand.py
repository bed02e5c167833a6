"""Answers written without their schema, for speed, are what the schema would write."""

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from service.api.http.responses import to_json
from service.api.referrals import ReferralsSchema, write_page
from service.domain.pages import Cursor, Page
from service.domain.referrals import Referral, ReferralFlag, ReferralState

MOMENTS = st.datetimes(
    datetime(1970, 1, 1),  # noqa: DTZ001  # hypothesis adds the zone
    datetime(9000, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))]),
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


@given(
    st.lists(REFERRALS, max_size=3), st.none() | st.builds(Cursor, at=MOMENTS, row_id=st.uuids())
)
def test_a_page_of_referrals(items: list[Referral], cursor: Cursor | None) -> None:
    page = Page(items, cursor)
    assert write_page(page) == to_json(ReferralsSchema().dump(page))
