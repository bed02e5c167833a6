"""Refresh tokens: only what the service made is believed."""

import base64
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import InvalidToken
from service.security.refresh_tokens import RefreshToken, RefreshTokens
from tests.unit.strategies import ANY_TEXT
from tests.unit.test_access_tokens import ISSUED

OLD_KEY, NEW_KEY = b"o" * 32, b"n" * 32
SESSION = UUID("01920000-0000-7000-8000-000000000002")
TOKENS = RefreshTokens([OLD_KEY])
ISSUED_TOKEN = TOKENS.issue(SESSION, 5)
RAW = base64.urlsafe_b64decode(ISSUED_TOKEN)


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@given(st.uuids(), st.integers(0, 2**63 - 1))
def test_a_token_comes_back_as_it_went(session_id: UUID, counter: int) -> None:
    token = TOKENS.issue(session_id, counter)
    assert TOKENS.verify(token) == RefreshToken(session_id, counter)


def test_a_token_is_short_and_needs_no_escaping() -> None:
    assert len(ISSUED_TOKEN) == 64
    assert set(ISSUED_TOKEN) <= set(encode(bytes(range(256)))) | set("-_")


def test_every_rotation_gives_another_token() -> None:
    assert len({TOKENS.issue(SESSION, counter) for counter in range(100)}) == 100


def test_every_flipped_bit_is_noticed() -> None:
    number = int.from_bytes(RAW, "big")
    for bit in range(8 * len(RAW)):
        flipped = (number ^ 1 << bit).to_bytes(len(RAW), "big")
        with pytest.raises(InvalidToken):
            TOKENS.verify(encode(flipped))


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="empty"),
        pytest.param("A" * 64, id="zeros"),
        pytest.param(encode(RAW[:24]), id="no MAC"),
        pytest.param(encode(RAW[:-1]), id="a byte short"),
        pytest.param(encode(RAW + b"\0"), id="a byte long"),
        pytest.param(encode(RAW[1:]), id="the first byte lost"),
        pytest.param(encode(RAW[24:] + RAW[:24]), id="turned round"),
        pytest.param(ISSUED_TOKEN[:-1], id="a character short"),
        pytest.param(ISSUED_TOKEN + "A", id="a character long"),
        pytest.param(f" {ISSUED_TOKEN}", id="a space before it"),
        pytest.param(f"{ISSUED_TOKEN}\n", id="a newline behind it"),
        pytest.param(f"{ISSUED_TOKEN[:32]}\n{ISSUED_TOKEN[32:]}", id="a newline within"),
        pytest.param(ISSUED_TOKEN[:-1] + "\u00e9", id="a character beyond ASCII"),
        pytest.param("\udcff" * 64, id="bytes that are not UTF-8"),
        pytest.param("\ud800", id="half a surrogate pair"),
        pytest.param("\0" * 64, id="NUL"),
        pytest.param("A" * 1_000_000, id="a megabyte"),
        pytest.param(ISSUED, id="an access token"),
        pytest.param(RefreshTokens([NEW_KEY]).issue(SESSION, 5), id="made with another key"),
    ],
)
def test_what_is_not_ours_is_refused(token: str) -> None:
    with pytest.raises(InvalidToken):
        TOKENS.verify(token)


@given(ANY_TEXT)
def test_no_text_is_believed(text: str) -> None:
    with pytest.raises(InvalidToken):
        TOKENS.verify(text)


def test_the_first_key_makes_tokens_and_all_verify() -> None:
    rotated = RefreshTokens([NEW_KEY, OLD_KEY])
    assert rotated.verify(ISSUED_TOKEN) == RefreshToken(SESSION, 5)
    new = rotated.issue(SESSION, 6)
    assert RefreshTokens([NEW_KEY]).verify(new) == rotated.verify(new) == RefreshToken(SESSION, 6)
    with pytest.raises(InvalidToken):
        TOKENS.verify(new)
