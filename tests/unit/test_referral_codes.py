"""The rules for issuing a referral code."""

import re
import string
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.domain.errors import ExpiryOutOfRange, InvalidInput
from service.domain.referral_codes import (
    NewReferralCode,
    ReferralCode,
    generate_code,
    issue_referral_code,
    normalise_code,
)
from tests.unit.strategies import ANY_TEXT

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
OWNER = UUID(int=1)
INSTANT = timedelta(microseconds=1)
LONGEST = timedelta(days=366)
CHOSEN = string.ascii_letters + string.digits + "-"


def issue(wish: NewReferralCode) -> ReferralCode:
    return issue_referral_code(OWNER, wish, NOW)


@pytest.mark.parametrize(
    "expires_at",
    [
        pytest.param(NOW + INSTANT, id="the first instant after now"),
        pytest.param(NOW + timedelta(days=30), id="in a month"),
        pytest.param(NOW + LONGEST - INSTANT, id="just within 366 days"),
        pytest.param(NOW + LONGEST, id="exactly 366 days"),
    ],
)
def test_an_expiry_within_366_days_is_taken_as_it_is(expires_at: datetime) -> None:
    assert issue(NewReferralCode(expires_at=expires_at)).expires_at == expires_at


@pytest.mark.parametrize(
    "expires_at",
    [
        pytest.param(datetime.min.replace(tzinfo=UTC), id="the beginning of time"),
        pytest.param(NOW - timedelta(days=1), id="yesterday"),
        pytest.param(NOW - INSTANT, id="just past"),
        pytest.param(NOW, id="now"),
        pytest.param(NOW + LONGEST + INSTANT, id="an instant more than 366 days"),
        pytest.param(datetime.max.replace(tzinfo=UTC), id="the end of time"),
    ],
)
def test_an_expiry_outside_is_refused(expires_at: datetime) -> None:
    with pytest.raises(ExpiryOutOfRange) as caught:
        issue(NewReferralCode(expires_at=expires_at))
    assert caught.value.field == "expires_at"


@pytest.mark.parametrize("days", [1, 2, 365, 366])
def test_an_expiry_in_days_is_counted_from_now(days: int) -> None:
    issued = issue(NewReferralCode(expires_in_days=days))
    assert issued.expires_at == NOW + timedelta(days=days)


@pytest.mark.parametrize("days", [-(10**30), -1, 0, 367, 10**30])
def test_days_outside_are_refused(days: int) -> None:
    with pytest.raises(ExpiryOutOfRange, match="1 to 366 days") as caught:
        issue(NewReferralCode(expires_in_days=days))
    assert caught.value.field == "expires_in_days"


@pytest.mark.parametrize(
    "wish",
    [
        pytest.param(NewReferralCode(), id="neither"),
        pytest.param(NewReferralCode(expires_at=NOW + INSTANT, expires_in_days=1), id="both"),
        pytest.param(NewReferralCode(expires_at=NOW + INSTANT, expires_in_days=0), id="both, 0"),
    ],
)
def test_exactly_one_expiry_is_asked_for(wish: NewReferralCode) -> None:
    with pytest.raises(ExpiryOutOfRange, match="exactly one"):
        issue(wish)


def test_a_code_is_issued_as_wished() -> None:
    issued = issue(NewReferralCode(expires_in_days=1, code="summer-26", max_uses=3))
    assert issued == ReferralCode(
        referral_code_id=issued.referral_code_id,
        owner_id=OWNER,
        code="SUMMER-26",
        created_at=NOW,
        expires_at=NOW + timedelta(days=1),
        max_uses=3,
        uses=0,
    )
    assert issued.referral_code_id.version == 7


def test_without_a_wish_the_code_is_generated() -> None:
    issued = [issue(NewReferralCode(expires_in_days=1)).code for _ in range(100)]
    assert len(set(issued)) == 100


def test_generated_codes_have_10_characters_and_no_look_alikes() -> None:
    codes = [generate_code() for _ in range(1000)]
    assert all(re.fullmatch(r"[A-Z2-9]{10}", code) for code in codes)
    assert set("".join(codes)) == set(string.ascii_uppercase + string.digits) - set("0O1IL")


def test_a_generated_code_is_one_that_could_be_chosen() -> None:
    code = generate_code()
    assert normalise_code(code) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("SUMMER", "SUMMER", id="as it is"),
        pytest.param("summer", "SUMMER", id="lower case"),
        pytest.param("iiii", "IIII", id="i, which a Turkish upper() would not make I"),
        pytest.param("0000", "0000", id="digits"),
        pytest.param("----", "----", id="hyphens"),
        pytest.param("a" * 32, "A" * 32, id="the longest"),
        pytest.param(" ABCD", "ABCD", id="a space before it"),
        pytest.param("ABCD \t", "ABCD", id="white space after it"),
        pytest.param("\r\nABCD\n", "ABCD", id="a line of its own"),
        pytest.param("\u00a0abcd\u2003", "ABCD", id="white space of other kinds"),
        pytest.param(" " * 40 + "ABCD", "ABCD", id="more white space than a code is long"),
    ],
)
def test_codes_are_compared_in_capitals(text: str, code: str) -> None:
    assert normalise_code(text) == code


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("ABC", id="3 characters"),
        pytest.param("A" * 33, id="33 characters"),
        pytest.param("AB CD", id="a space within"),
        pytest.param(" ", id="a space alone"),
        pytest.param(" ABC ", id="3 characters between spaces"),
        pytest.param("ABCD\0", id="NUL"),
        pytest.param("AB_CD", id="an underscore"),
        pytest.param("abc\u0131", id="dotless i, whose capital is an ASCII I"),
        pytest.param("abc\u017f", id="long s, whose capital is an ASCII S"),
        pytest.param("ab\u00df", id="sharp s, whose capital is SS"),
        pytest.param("abc\u212a", id="Kelvin, which looks like K"),
        pytest.param("\ufb00\ufb00", id="a ligature, whose capital is FF"),
        pytest.param("АВСЕ", id="Cyrillic look-alikes"),  # noqa: RUF001
        pytest.param("\uff21BCD", id="a full-width A"),
        pytest.param("\u0661\u0662\u0663\u0664", id="Arabic digits"),
        pytest.param("ABC\ud800", id="half a surrogate pair"),
    ],
)
def test_other_codes_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="4 to 32 characters: A-Z, 0-9 and hyphens") as caught:
        normalise_code(text)
    assert caught.value.field == "code"


@given(st.text(CHOSEN, min_size=4, max_size=32))
def test_normalising_twice_changes_nothing(text: str) -> None:
    code = normalise_code(text)
    assert normalise_code(code) == normalise_code(text.lower()) == code


@given(ANY_TEXT)
def test_any_text_is_a_code_of_the_alphabet_or_refused(text: str) -> None:
    try:
        code = normalise_code(text)
    except InvalidInput:
        assert not re.fullmatch(r"[A-Za-z0-9-]{4,32}", text)
    else:
        assert re.fullmatch(r"[A-Z0-9-]{4,32}", code)


@given(st.integers(), st.datetimes(timezones=st.just(UTC)))
def test_a_wish_of_any_size_is_granted_or_refused(days: int, now: datetime) -> None:
    assume(now < datetime.max.replace(tzinfo=UTC) - LONGEST)
    try:
        issued = issue_referral_code(OWNER, NewReferralCode(expires_in_days=days), now)
    except ExpiryOutOfRange:
        assert not 1 <= days <= 366
    else:
        assert now < issued.expires_at <= now + LONGEST
