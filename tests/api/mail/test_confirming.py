"""Confirming an email address, driven end to end through a real SMTP server."""

import asyncio
import re
from datetime import timedelta

import asyncpg
import pytest

from service.domain.mails import MOST_MAILS_AN_HOUR, TOKEN_LIVES
from service.postgresql import database as databases
from service.settings.settings import read_settings
from tests.api.conftest import no_jobs
from tests.api.mailing import ANNA, assert_unusable, confirm, forgotten, mailed, reset, token_in
from tests.factories import PASSWORD, Answer, Api, running
from tests.stand_ins.smtp import SmtpServer

pytestmark = pytest.mark.usefixtures("impatient")


async def test_who_registers_confirms_the_email(api: Api, smtp: SmtpServer) -> None:
    anna = await api.new_person(ANNA)
    assert not (await api.get("/users/me", by=anna)).json()["email_confirmed"]
    [mail] = await mailed(smtp, ANNA, "Confirm")
    assert (await confirm(api, token_in(mail))).status == 204
    assert (await api.get("/users/me", by=anna)).json()["email_confirmed"]


async def test_a_mail_is_plain_and_html_with_headers_of_its_kind(
    api: Api, smtp: SmtpServer
) -> None:
    await api.register(ANNA)
    [mail] = await mailed(smtp, ANNA, "Confirm")
    token = token_in(mail)
    assert mail.mail_from == "referrals@example.com"
    assert mail.links == [f"https://app.example.com/confirm-email#token={token}"]
    assert mail.html.count(f"https://app.example.com/confirm-email#token={token}") == 2
    assert mail.message["From"] == "referrals <referrals@example.com>"
    assert mail.message["To"] == ANNA
    assert mail.message["Auto-Submitted"] == "auto-generated"
    assert re.fullmatch(r"<[0-9a-f-]{36}@example\.com>", mail.message["Message-ID"])
    assert len(token) >= 43


async def test_without_a_front_end_the_mail_holds_the_token(
    mail_environment: dict[str, str], smtp: SmtpServer, database: object, redis: object
) -> None:
    del mail_environment["APP_URL"]
    async with running(read_settings(mail_environment)) as api:
        await api.register(ANNA)
        [mail] = await mailed(smtp, ANNA, "Confirm")
        assert mail.links == []
        found = re.search(r"/auth/email/confirm:\s+(\S+)", mail.text)
        assert found
        assert found[1] in mail.html
        assert (await confirm(api, found[1])).status == 204


@pytest.mark.parametrize("lives", [TOKEN_LIVES - timedelta(seconds=5), TOKEN_LIVES])
async def test_a_token_is_good_for_ten_minutes(
    api: Api, smtp: SmtpServer, lives: timedelta
) -> None:
    await api.register(ANNA)
    [mail] = await mailed(smtp, ANNA, "Confirm")
    api.clock.ahead += lives
    answer = await confirm(api, token_in(mail))
    assert answer.status == (422 if lives == TOKEN_LIVES else 204)


async def test_of_many_who_send_a_token_at_once_one_is_first(api: Api, smtp: SmtpServer) -> None:
    """Without DELETE … RETURNING in TAKE there are more."""
    await api.register(ANNA)
    await mailed(smtp, ANNA, "Confirm")
    token = await forgotten(api, smtp)
    answers = await asyncio.gather(*(reset(api, token) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [204, *[422] * 4]


@pytest.mark.parametrize("confirmed", [False, True])
async def test_of_many_who_send_two_tokens_at_once_one_is_first_and_none_waits_for_another(
    api: Api, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch, confirmed: bool
) -> None:
    """With the token taken before its owner is locked they wait for each other."""
    await api.register(ANNA)
    confirmation = token_in((await mailed(smtp, ANNA, "Confirm"))[0])
    if confirmed:
        assert (await confirm(api, confirmation)).status == 204
    tokens = [await forgotten(api, smtp, count=count) for count in (1, 2)]
    monkeypatch.setattr(databases, "TRIES", 1)
    answers = await asyncio.gather(*(reset(api, token) for token in tokens * 8))
    assert sorted(answer.status for answer in answers) == [204, *[422] * 15]


async def test_a_token_is_good_for_its_purpose_alone(api: Api, smtp: SmtpServer) -> None:
    await api.register(ANNA)
    [mail] = await mailed(smtp, ANNA, "Confirm")
    to_reset = await forgotten(api, smtp)
    assert_unusable(await reset(api, token_in(mail)))
    assert_unusable(await confirm(api, to_reset))
    assert (await confirm(api, token_in(mail))).status == 204
    assert (await reset(api, to_reset)).status == 204


@pytest.mark.parametrize("token", ["", "x", "\u0000", "ü" * 2000, "a" * 43])
async def test_what_was_never_mailed_is_unusable(api: Api, token: str) -> None:
    assert_unusable(await confirm(api, token))
    assert_unusable(await reset(api, token))


async def test_a_token_proves_the_email_that_it_was_mailed_to_and_no_other(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    """Without the condition in CONFIRM_EMAIL it would confirm any address the account has."""
    await api.register(ANNA)
    [mail] = await mailed(smtp, ANNA, "Confirm")
    to_reset = await forgotten(api, smtp)
    await database.execute("UPDATE users SET email = 'new@x.org', email_key = 'new@x.org'")
    assert_unusable(await confirm(api, token_in(mail)))
    assert_unusable(await reset(api, to_reset))
    assert await database.fetchval("SELECT email_confirmed_at FROM users") is None


async def test_the_confirmation_is_sent_again(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    await api.register(ANNA)
    await mailed(smtp, ANNA, "Confirm")
    assert (await api.post("/auth/email/resend", {"email": "ANNA@example.com"})).status == 202
    [_, second] = await mailed(smtp, ANNA, "Confirm", 2)
    assert (await confirm(api, token_in(second))).status == 204
    # There is nothing to confirm any more.
    assert (await api.post("/auth/email/resend", {"email": ANNA})).status == 202
    await no_jobs(database)
    assert len(smtp.mails) == 2


async def test_the_database_never_holds_a_token(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    await api.register(ANNA)
    token = token_in((await mailed(smtp, ANNA, "Confirm"))[0])
    tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for table in tables:
        rows = await database.fetch(f'SELECT t::text AS row FROM "{table["tablename"]}" t')
        assert not [row for row in rows if token in row["row"]]
    assert await database.fetchval("SELECT octet_length(token_hash) FROM mail_tokens") == 32


async def test_nobody_fills_a_mailbox(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    await api.register(ANNA)
    for _ in range(MOST_MAILS_AN_HOUR + 3):
        assert (await api.post("/auth/password/forgot", {"email": ANNA})).status == 202
    await no_jobs(database)
    assert len(smtp.mails_to(ANNA)) == MOST_MAILS_AN_HOUR
    api.clock.ahead += timedelta(hours=1)
    await forgotten(api, smtp, count=MOST_MAILS_AN_HOUR)  # the first mail was another one


def from_everywhere(count: int) -> list[dict[str, str]]:
    """Return the headers of requests that come from so many addresses."""
    return [{"X-Forwarded-For": f"203.0.113.{number}"} for number in range(count)]


@pytest.mark.parametrize("email", [ANNA, "nobody@example.com"])
@pytest.mark.parametrize(
    ("mode", "path", "member", "others"),
    [
        ("off", "/auth/password/forgot", "email", {}),
        ("off", "/auth/email/resend", "email", {}),
        ("off", "/auth/email/change", "new_email", {"password": PASSWORD}),
        ("required", "/auth/password/forgot", "email", {}),
        ("required", "/auth/email/resend", "email", {}),
        ("required", "/auth/email/change", "new_email", {"password": PASSWORD}),
        ("required", "/auth/register", "email", {"password": PASSWORD}),
    ],
)
async def test_asking_for_mails_is_limited_for_an_address_and_never_for_an_email(
    mail_environment: dict[str, str],
    database: asyncpg.Connection,
    redis: object,
    email: str,
    mode: str,
    path: str,
    member: str,
    others: dict[str, str],
) -> None:
    """Otherwise anyone could lock its owner out, and see in the headers whether there is one."""
    limits = {"RATE_LIMIT_MAIL": "3/minute", "TRUSTED_PROXIES": "127.0.0.1"}
    async with running(read_settings(mail_environment)) as api:
        await api.register(ANNA)
        bert = await api.new_person("bert@example.com")
        await database.execute("UPDATE users SET email_confirmed_at = now()")
    settings = read_settings({**mail_environment, **limits, "EMAIL_CONFIRMATION": mode})
    async with running(settings) as api:

        async def ask(headers: dict[str, str]) -> Answer:
            return await api.post(path, {member: email, **others}, by=bert, headers=headers)

        for headers in from_everywhere(8):
            answer = await ask(headers)
            assert answer.status == 202, answer.body
            assert answer.headers["RateLimit-Policy"] == '"mail";q=3;w=60'
            assert answer.headers["RateLimit"] == '"mail";r=2;t=60'
        answers = [await ask({"X-Forwarded-For": "203.0.113.99"}) for _ in range(4)]
        assert [answer.status for answer in answers] == [202, 202, 202, 429]
