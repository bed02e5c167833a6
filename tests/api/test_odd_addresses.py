"""Addresses that are odd, and mails to them: sent to exactly these, or refused at once."""

import logging
from collections.abc import AsyncIterator
from urllib.parse import quote

import asyncpg
import pytest

from service.domain.emails import Email, parse_email
from service.domain.errors import EmailMalformed
from service.domain.jobs import PermanentFailure
from service.domain.mails import Mail
from service.providers.mail import Mailer
from service.settings.settings import read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.factories import PASSWORD, Api, running
from tests.stand_ins.smtp import SmtpServer

pytestmark = pytest.mark.usefixtures("impatient")
LOCAL_PARTS = [
    *(f"a{character}b" for character in "!#$%&'*+-/=?^_`{|}~."),
    *(character for character in "!#$%&'*+-/=?^_`{|}~"),
    "=?utf-8?q?x?=",
    "=?UTF-8?B?eA==?=",
    "a=?utf-8?q?x?=",
    "=?utf-8?q?x?=b",
    "=?x",
    "x?=",
    "=?=",
    "=?utf-8?q?=0d=0abcc=3A_all?=",
    "?=?=?",
    "a" * 64,
    "'" * 64,
    "a.b.c.d.e.f.g.h",
    "xn--a",
    "rfc822;a",
    "a,b",
    "a:b",
    "a<b>",
    "a(b)",
    "a\\b",
    '"a b"',
    "a\tb",
    "a\rb",
    "a\nb",
    "a\0b",
    "a\x7fb",
    "\u00e4",
    "a\u200bb",
    "a\ud800",
]
DOMAINS = [
    "example.com",
    "b\u00fccher.example.org",
    f"{'a' * 63}.{'b' * 63}.{'c' * 40}.example.com",
]


@pytest.fixture
async def api(
    mail_environment: dict[str, str], database: object, redis: object
) -> AsyncIterator[Api]:
    async with running(read_settings(mail_environment)) as api:
        yield api


def is_email(text: str) -> bool:
    try:
        parse_email(text)
    except EmailMalformed:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        "=?utf-8?q?x?=@example.org",
        "=?UTF-8?B?eA==?=@example.org",
        "=?utf-8?q?x?=b@example.org",
        "a=?utf-8?q?x?=@example.org",
        "a\r\nBcc:b@example.org",
        "a\x7f@example.org",
    ],
)
async def test_what_cannot_stand_in_a_header_is_refused(
    api: Api, database: asyncpg.Connection, text: str
) -> None:
    assert_problem(await api.register(text), 422, "validation-failed", ["#/email"])
    anna = await api.new_person()
    body = {"new_email": text, "password": PASSWORD}
    answer = await api.post("/auth/email/change", body, by=anna)
    assert_problem(answer, 422, "validation-failed", ["#/new_email"])
    assert (await api.log_in(text)).status == 401
    assert (await api.get(f"/referral-code/{quote(text)}")).status == 404


async def test_a_mail_goes_to_exactly_the_address_that_registered(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    accepted = [
        email
        for local_part in LOCAL_PARTS
        for domain in DOMAINS
        if is_email(email := f"{local_part}@{domain}")
    ]
    assert len(accepted) > 100
    for email in accepted:
        assert (await api.register(email)).status == 201, email
    await no_jobs(database)
    assert await database.fetchval("SELECT count(*) FROM jobs") == 0
    mailboxes = [parse_email(email).mailbox for email in accepted]
    assert sorted(mail.rcpt_tos[0] for mail in smtp.mails) == sorted(mailboxes)
    for sent in smtp.mails:
        [named] = sent.message["To"].addresses
        assert (named.addr_spec,) == sent.rcpt_tos


async def test_a_mail_that_cannot_be_written_is_given_up_at_once_in_one_line(
    api: Api,
    smtp: SmtpServer,
    database: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the reason is: here half of a surrogate pair, and an address of long ago."""
    monkeypatch.setattr("service.domain.mails._CONFIRM", "half of a pair: \ud800")
    with caplog.at_level(logging.INFO, "service.use_cases.jobs"):
        await api.register("anna@example.com")
        await no_jobs(database)
        [parked] = await database.fetch("SELECT tries, last_error FROM jobs")
        assert parked["tries"] == 1
        assert parked["last_error"] == "the mail cannot be written: UnicodeEncodeError"
        await database.execute(
            "UPDATE users SET email = '=?utf-8?q?x?=@example.org',"
            " email_key = '=?utf-8?q?x?=@example.org'"
        )
        await database.execute(
            "UPDATE jobs SET parked_at = NULL, due_at = now(),"
            " payload = payload || jsonb_build_object('email', '=?utf-8?q?x?=@example.org'::text)"
        )
        await no_jobs(database)
    lines = [record for record in caplog.records if record.name == "service.use_cases.jobs"]
    assert len(lines) == 2
    assert not [line for line in lines if line.exc_info]
    assert smtp.mails == []
    # Nothing of it counts: the mailbox has room as before, and no token is left.
    assert await database.fetchval("SELECT cardinality(sent_at) FROM mailboxes") == 0
    assert await database.fetchval("SELECT count(*) FROM mail_tokens") == 0


@pytest.mark.parametrize(
    "to",
    [
        Email("=?utf-8?q?x?=@example.org", "=?utf-8?q?x?=@example.org"),
        Email("a\nb@x.org", "a@x.org"),
    ],
)
async def test_a_header_that_would_name_another_address_is_never_sent(
    mail_environment: dict[str, str], smtp: SmtpServer, to: Email
) -> None:
    settings = read_settings(mail_environment)
    assert settings.mail is not None
    mailer = Mailer(settings.mail, settings.service_name)
    with pytest.raises(PermanentFailure):
        await mailer.send(Mail(subject="Hello", paragraphs=("Hello.",)), to, "1")
    assert smtp.connections == 0
