"""What counts as the same e-mail, and what counts as none."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.emails import (
    _PLAIN,
    Email,
    allow_domains,
    fold_mailbox,
    hash_mailbox,
    key_of,
    parse_email,
)
from service.domain.errors import EmailMalformed
from tests.unit.strategies import ANY_TEXT


@pytest.mark.parametrize(
    ("text", "key"),
    [
        pytest.param("anna@example.com", "anna@example.com", id="as it is"),
        pytest.param("Anna@example.com", "anna@example.com", id="capitals in the local part"),
        pytest.param("anna@EXAMPLE.com", "anna@example.com", id="capitals in the domain"),
        pytest.param("anna@stra\u00dfe.de", "anna@xn--strae-oqa.de", id="a domain in Unicode"),
        pytest.param("anna@xn--strae-oqa.de", "anna@xn--strae-oqa.de", id="a domain in IDNA"),
        pytest.param("anna@XN--STRAE-OQA.de", "anna@xn--strae-oqa.de", id="IDNA in capitals"),
        pytest.param("anna@M\u00dcNCHEN.de", "anna@xn--mnchen-3ya.de", id="capitals in Unicode"),
        pytest.param("anna@mu\u0308nchen.de", "anna@xn--mnchen-3ya.de", id="a combining accent"),
        pytest.param("anna@\uff45xample.com", "anna@example.com", id="a full-width letter"),
        pytest.param("anna@example\u3002com", "anna@example.com", id="an ideographic full stop"),
        pytest.param("anna+shop@example.com", "anna+shop@example.com", id="a sub-address is kept"),
        pytest.param("a.n.n.a@gmail.com", "a.n.n.a@gmail.com", id="dots are kept"),
        pytest.param("o'brien@example.com", "o'brien@example.com", id="an apostrophe"),
        pytest.param("anna@example.test", "anna@example.test", id="the name that tests may use"),
    ],
)
def test_an_email_is_shown_as_given_and_compared_by_its_key(text: str, key: str) -> None:
    assert parse_email(text) == Email(text, key)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("anna", id="no @"),
        pytest.param("@", id="nothing but @"),
        pytest.param("@example.com", id="no local part"),
        pytest.param("anna@", id="no domain"),
        pytest.param("anna@b@example.com", id="two @"),
        pytest.param("anna@example", id="no top-level domain"),
        pytest.param("anna@localhost", id="this machine"),
        pytest.param("anna@127.0.0.1", id="an address"),
        pytest.param("anna@[127.0.0.1]", id="an address literal"),
        pytest.param("anna@example.com.", id="a dot at the end"),
        pytest.param("anna@example..com", id="an empty label"),
        pytest.param("anna@-example.com", id="a hyphen first"),
        pytest.param("anna@xn--a.com", id="IDNA that decodes to nothing"),
        pytest.param("anna@\u0261oo\u0261le\u2024com", id="a one-dot leader"),
        pytest.param(".anna@example.com", id="a dot first"),
        pytest.param("an..na@example.com", id="two dots"),
        pytest.param('"an na"@example.com', id="a quoted local part"),
        pytest.param("Anna <anna@example.com>", id="a name before it"),
        pytest.param("anna@example.com,bert@example.com", id="two"),
        pytest.param(" anna@example.com", id="a space before it"),
        pytest.param("anna@example.com ", id="a space behind it"),
        pytest.param("anna@example.com\n", id="a newline behind it"),
        pytest.param("anna@example.com\r\nBcc: all@example.com", id="a header for the mail"),
        pytest.param("anna\0@example.com", id="NUL, which PostgreSQL refuses"),
        pytest.param("\u0430nna@example.com", id="a Cyrillic a"),
        pytest.param("\u212aelvin@example.com", id="Kelvin, whose small letter is an ASCII k"),
        pytest.param("\u0130@example.com", id="I with a dot"),
        pytest.param("=?utf-8?q?x?=@example.com", id="an encoded word"),
        pytest.param("a=?utf-8?q?x?=@example.com", id="an encoded word within"),
        pytest.param("anna\u200d@example.com", id="a joiner nobody sees"),
        pytest.param("anna\u202e@example.com", id="text from right to left"),
        pytest.param("\ud800@example.com", id="half a surrogate pair"),
        pytest.param("anna@\udcff.com", id="bytes that are not UTF-8"),
        pytest.param("anna@" + "a" * 64 + ".com", id="a label of 64 characters"),
        pytest.param("anna@" + "a." * 150 + "com", id="more than 254 characters"),
        pytest.param("a" * 16_000, id="a body full"),
        pytest.param("@" * 16_000, id="a body full of @"),
    ],
)
def test_what_is_no_email_is_malformed(text: str) -> None:
    with pytest.raises(EmailMalformed) as caught:
        parse_email(text)
    assert caught.value.field == "email"
    caught.value.detail.encode()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("anna@corp.local", "anna@corp.local"),
        ("Anna@Corp.LOCAL", "anna@corp.local"),
        ("anna@local", "anna@local"),
        ("anna@localhost", "anna@localhost"),
        ("anna@mail.home.arpa", "anna@mail.home.arpa"),
    ],
)
def test_a_domain_that_the_operators_allow_is_one(text: str, key: str) -> None:
    with pytest.raises(EmailMalformed):
        parse_email(text)
    allowed = {"local", "localhost", "home.arpa"}
    assert parse_email(text, allowed) == Email(text, key)
    allow_domains(allowed)
    try:
        assert parse_email(text) == Email(text, key)
        assert key_of(text) == key
    finally:
        allow_domains(())
    with pytest.raises(EmailMalformed):
        parse_email(text)


@pytest.mark.parametrize(
    "text", ["anna@evillocal", "anna@corp.local.", "anna@.local", "anna@other.arpa", "anna@", "a@b"]
)
def test_and_no_other_is(text: str) -> None:
    with pytest.raises(EmailMalformed):
        parse_email(text, {"local", "home.arpa"})


@given(ANY_TEXT | st.builds("{}@{}.{}".format, ANY_TEXT, ANY_TEXT, ANY_TEXT))
def test_any_text_is_an_email_or_malformed(text: str) -> None:
    try:
        parsed = parse_email(text)
    except EmailMalformed as error:
        error.detail.encode()  # the reason can be sent, whatever it quotes
    else:
        assert parsed.key.isascii()


@given(st.emails())
def test_a_key_is_its_own_key(text: str) -> None:
    """Otherwise the account would not be found again by what is stored of it."""
    try:
        key = parse_email(text).key
    except EmailMalformed:
        return
    assert parse_email(key).key == parse_email(text.upper()).key == key


@given(st.from_regex(_PLAIN, fullmatch=True) | st.emails() | ANY_TEXT)
def test_the_key_to_look_for_is_that_of_the_account(text: str) -> None:
    """The short cut for plain e-mails must not lead anywhere else."""
    try:
        parsed = parse_email(text)
    except EmailMalformed:
        return
    assert key_of(text) == parsed.key


@given(st.from_regex(_PLAIN, fullmatch=True), st.text(" \t\r\n\u00a0\u3000"))
def test_white_space_around_an_email_to_look_for_does_not_count(email: str, space: str) -> None:
    try:
        parse_email(email)
    except EmailMalformed:
        return
    assert key_of(f"{space}{email}{space}") == key_of(email)


@pytest.mark.parametrize(
    ("email_key", "mailbox"),
    [
        ("anna@example.com", "anna@example.com"),
        ("anna+shop@example.com", "anna@example.com"),
        ("anna+a+b@example.com", "anna@example.com"),
        ("an.na@example.com", "an.na@example.com"),
        ("+anna@example.com", "+anna@example.com"),
        ("a.n.n.a@gmail.com", "anna@gmail.com"),
        ("a.nna+x.y@googlemail.com", "anna@gmail.com"),
        ("anna@mail.gmail.com", "anna@mail.gmail.com"),
    ],
)
def test_addresses_of_one_mailbox_are_folded_to_one(email_key: str, mailbox: str) -> None:
    assert fold_mailbox(email_key) == mailbox
    assert hash_mailbox(email_key, b"key") == hash_mailbox(mailbox, b"key")
    assert hash_mailbox(email_key, b"key") != hash_mailbox(mailbox, b"another key")


@given(st.emails())
def test_any_email_has_a_mailbox_which_is_its_own_mailbox(text: str) -> None:
    try:
        key = parse_email(text).key
    except EmailMalformed:
        return
    mailbox = fold_mailbox(key)
    assert fold_mailbox(mailbox) == mailbox
    assert len(mailbox.partition("@")[0]) > 0


def test_an_email_that_is_not_plain_is_parsed() -> None:
    assert key_of("Anna@M\u00dcNCHEN.de") == "anna@xn--mnchen-3ya.de"
    with pytest.raises(EmailMalformed):
        key_of("anna@example")


@pytest.mark.parametrize("text", ["a" * 30_000, "a@" + "a." * 15_000, "a@" + "a-" * 15_000])
def test_whether_an_email_is_plain_is_seen_in_a_moment(text: str) -> None:
    started = time.perf_counter()
    _PLAIN.fullmatch(text)
    assert time.perf_counter() - started < 0.5
