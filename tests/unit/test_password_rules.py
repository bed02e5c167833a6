"""Which passwords an account may have."""

import pytest

from service.domain.errors import PasswordUnacceptable
from service.domain.passwords import (
    _common_passwords,
    check_password,
    is_common,
    normalise_password,
)
from service.domain.users import parse_email

EMAIL = parse_email("Anna.Longname@M\u00dcNCHEN.example.com")


def check(password: str, min_length: int = 8) -> None:
    check_password(password, EMAIL, min_length, "#/new_password")


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("zq7 !vkw", id="the shortest"),
        pytest.param("x7" * 64, id="the longest"),
        pytest.param("a long walk by the river", id="words, without digits or capitals"),
        pytest.param("        \t", id="nothing but spaces: no rules of composition"),
        pytest.param("\u00e4\u00f6\u00fc\u00df" * 2, id="umlauts"),
        pytest.param("\U0001f600" * 128, id="128 emoji, which are 512 bytes"),
        pytest.param("nul\0within", id="NUL"),
        pytest.param("anna.longname and more", id="the e-mail's name, and more"),
        pytest.param("password1 and more", id="a common one, and more"),
    ],
)
def test_a_password_of_8_to_128_characters_is_accepted(password: str) -> None:
    check(password)


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        pytest.param("", "this one 0", id="empty"),
        pytest.param("zq7 !vk", "this one 7", id="7 characters"),
        pytest.param("\U0001f600" * 7, "this one 7", id="7 emoji, which are 28 bytes"),
        pytest.param("x7" * 64 + "x", "this one 129", id="129 characters"),
        pytest.param("x" * 5000, "this one 5000", id="a book"),
        pytest.param("password", "most common", id="a common one"),
        pytest.param("PassWord", "most common", id="a common one with capitals"),
        pytest.param("12345678", "most common", id="digits in a row"),
        pytest.param("anna.longname@m\u00fcnchen.example.com", "is the e-mail", id="the e-mail"),
        pytest.param("ANNA.LONGNAME@M\u00dcNCHEN.EXAMPLE.COM", "is the e-mail", id="in capitals"),
        pytest.param(EMAIL.key, "is the e-mail", id="the e-mail in IDNA"),
        pytest.param("Anna.LongName", "is the e-mail", id="the e-mail's name"),
    ],
)
def test_what_attackers_try_first_is_refused(password: str, reason: str) -> None:
    with pytest.raises(PasswordUnacceptable, match=reason) as caught:
        check(password)
    assert caught.value.pointer == "#/new_password"


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("u\u0308ber allem", "\u00fcber allem"),
        ("\u00fcber allem", "\u00fcber allem"),
        ("\u212bngstr\u00f6m", "\u00c5ngstr\u00f6m"),
        ("a\u00a0b\u2003c\u3000d", "a b c d"),
        ("no\tspace\u200b", "no\tspace\u200b"),
        ("Keep Case", "Keep Case"),
        ("\uff21\ufb01", "\uff21\ufb01"),
        ("\u0958", "\u0915\u093c"),
    ],
)
def test_a_password_has_one_form_in_which_it_is_stored(sent: str, stored: str) -> None:
    """RFC 8265, 4.2: other spaces and composition; neither case nor width nor compatibility."""
    assert normalise_password(sent) == stored == normalise_password(stored)


def test_what_is_too_long_in_any_form_is_not_composed() -> None:
    """To put 8000 accents in order takes 50 ms, for which the event loop waits."""
    book = "\u0301\u0316" * 257
    assert normalise_password(book) is book
    assert normalise_password("\u0301\u0316" * 256) != "\u0301\u0316" * 256


def test_an_operator_can_ask_for_more_characters() -> None:
    check("fifteen letters", min_length=15)
    with pytest.raises(PasswordUnacceptable, match="15 to 128 characters, this one 14"):
        check("fourteen chars", min_length=15)


def test_the_list_holds_what_the_standard_asks_for() -> None:
    """OWASP ASVS 5.0, 6.2.4: at least the 3 000 commonest of those that are long enough."""
    passwords = _common_passwords().split("\n")[1:-1]
    assert sum(len(password) >= 8 for password in passwords) >= 3000
    assert all(map(is_common, passwords))


def test_what_only_looks_like_the_list_is_not_in_it() -> None:
    first, second, *_ = _common_passwords().split("\n")[1:]
    assert not any(map(is_common, ["", "\n", f"{first}\n{second}", f"{first}x!"]))
