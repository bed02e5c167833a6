"""What goes through the owner's mailbox, driven end to end through a real SMTP server."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES, SETTINGS
from service.domain.mails import MOST_MAILS_AN_HOUR, TOKEN_LIVES
from service.postgresql import database as databases
from service.providers import mail
from service.redis.password_attempts import known_addresses_key
from service.settings.settings import read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.api.mailing import (
    ANNA,
    NEW_PASSWORD,
    assert_unusable,
    confirm,
    forgotten,
    mailed,
    reset,
    token_in,
)
from tests.factories import PASSWORD, Answer, Api, Person, new_email, running
from tests.oauth import new_admin, new_application, refusal
from tests.sql.racing import until_blocked
from tests.stand_ins.smtp import (
    SmtpServer,
    Stage,
    accept,
    drop,
    hang,
    refuse,
    stored_then_dropped,
    stored_then_hung,
)

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
async def api(
    mail_environment: dict[str, str], database: asyncpg.Connection, redis: object
) -> AsyncIterator[Api]:
    async with running(read_settings(mail_environment)) as api:
        yield api


@pytest.fixture
async def strict(
    mail_environment: dict[str, str], database: asyncpg.Connection, redis: object
) -> AsyncIterator[Api]:
    """A service where e-mails have to be confirmed."""
    settings = read_settings({**mail_environment, "EMAIL_CONFIRMATION": "required"})
    async with running(settings) as api:
        yield api


@pytest.fixture
def short_dialogues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon on a mail server that hangs."""
    monkeypatch.setattr(mail, "TOTAL_SECONDS", 0.5)


# --- Confirming an e-mail.


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
    """Without the condition in CONFIRM_EMAIL it would confirm whatever e-mail the account has."""
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
    """Otherwise anybody would lock its owner out, and see in the headers whether there is one."""
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


# --- Resetting a password.


async def test_a_forgotten_password_is_reset(api: Api, smtp: SmtpServer) -> None:
    anna = await api.new_person(ANNA)
    assert (await api.get("/users/me", by=anna)).status == 200  # and that is cached
    assert (await reset(api, await forgotten(api, smtp))).status == 204
    assert (await api.get("/users/me", by=anna)).status == 401
    refreshed = await api.post("/auth/refresh", {"refresh_token": anna.refresh_token})
    assert refreshed.status == 401
    assert (await api.log_in(ANNA)).status == 401
    again = await api.log_in(ANNA, NEW_PASSWORD)
    assert again.status == 200
    # Whoever reads the mail is the owner of the e-mail.
    me = await api.get("/users/me", by=again.json()["access_token"])
    assert me.json()["email_confirmed"]
    [told] = await mailed(smtp, ANNA, "was changed")
    assert told.links == []


async def test_a_password_that_may_not_be_leaves_the_token_good(api: Api, smtp: SmtpServer) -> None:
    await api.register(ANNA)
    token = await forgotten(api, smtp)
    for unacceptable in ("short", "password123", ANNA):
        answer = await reset(api, token, unacceptable)
        assert_problem(answer, 422, "validation-failed", ["#/new_password"])
    assert (await reset(api, token)).status == 204


async def test_a_mail_goes_to_the_stored_address_however_it_was_asked_for(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    """CVE-2019-19844: what only compares alike may be somebody else's."""
    await api.register(ANNA)
    await api.post("/auth/password/forgot", {"email": "ANNA@EXAMPLE.COM"})
    await api.post("/auth/email/resend", {"email": "Anna@Example.com"})
    await no_jobs(database)
    assert [mail.rcpt_tos for mail in smtp.mails] == [(ANNA,)] * 3
    assert {mail.message["To"] for mail in smtp.mails} == {ANNA}


async def test_nothing_in_a_mail_is_taken_for_html(
    mail_environment: dict[str, str], smtp: SmtpServer, database: object, redis: object
) -> None:
    named = {**mail_environment, "SERVICE_NAME": "Smith & <b>Sons</b>"}
    async with running(read_settings(named)) as api:
        await api.register(ANNA)
        [mail] = await mailed(smtp, ANNA, "Smith & <b>Sons</b>")
        assert "Smith & <b>Sons</b>" in mail.text
        assert "Smith &amp; &lt;b&gt;Sons&lt;/b&gt;" in mail.html
        assert "<b>" not in mail.html


async def test_a_token_that_is_no_good_costs_no_hash(
    api: Api, smtp: SmtpServer, hashes: list[object]
) -> None:
    """Without the conditions in FIND a hash is computed before TAKE refuses."""
    await api.register(ANNA)
    [mail] = await mailed(smtp, ANNA, "Confirm")
    expired = await forgotten(api, smtp)
    api.clock.ahead += timedelta(hours=1)
    hashes.clear()
    for token in ("a" * 43, token_in(mail), expired):
        assert_unusable(await reset(api, token))
        assert_unusable(await reset(api, token, "short"))  # nor does it tell what is acceptable
    fresh = await forgotten(api, smtp, count=2)
    await api.post("/auth/email/resend", {"email": ANNA})
    [_, second] = await mailed(smtp, ANNA, "Confirm", 2)
    assert_unusable(await reset(api, token_in(second)))
    assert hashes == []
    assert (await reset(api, fresh)).status == 204


async def test_what_a_reset_or_a_change_makes_old_is_forgotten_by_a_job_too(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    """The request may be killed between its commit and the cache."""
    await database.execute("CREATE TABLE planned AS SELECT payload FROM jobs WITH NO DATA")
    await database.execute(
        "CREATE RULE planned AS ON INSERT TO jobs WHERE new.kind = 'forget'"
        " DO ALSO INSERT INTO planned VALUES (new.payload)"
    )
    try:
        anna = await api.new_person(ANNA)
        session_id = await database.fetchval("SELECT session_id FROM sessions")
        body = {"new_email": "anna@example.org", "password": PASSWORD}
        await api.post("/auth/email/change", body, by=anna)
        [mail] = await mailed(smtp, "anna@example.org", "Confirm your new email address")
        assert (await confirm(api, token_in(mail))).status == 204
        token = await forgotten(api, smtp, "anna@example.org")
        assert (await reset(api, token)).status == 204
        planned = [row["payload"] for row in await database.fetch("SELECT payload FROM planned")]
    finally:
        await database.execute("DROP RULE planned ON jobs")
        await database.execute("DROP TABLE planned")
    assert [set(json.loads(payload)) for payload in planned] == [
        {
            f"code:{ANNA}",
            "code:anna@example.org",
            known_addresses_key(api.app[SETTINGS].hash_key, ANNA),
        },
        {f"session:{session_id}"},
    ]


async def test_a_reset_ends_what_an_application_was_about_to_get(
    api: Api, smtp: SmtpServer, anna: Person
) -> None:
    application = await new_application(api)
    code = await application.code_of(anna)
    assert (await reset(api, await forgotten(api, smtp))).status == 204
    assert refusal(await application.redeem(code)) == (400, "invalid_grant")


async def test_a_reset_ends_all_other_tokens(api: Api, smtp: SmtpServer) -> None:
    await api.register(ANNA)
    first = await forgotten(api, smtp)
    second = await forgotten(api, smtp, count=2)
    assert (await reset(api, second)).status == 204
    assert_unusable(await reset(api, first, "another long password"))


async def test_a_reset_ends_what_an_issuer_put_on_an_email_nobody_had_confirmed(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    """Else whoever has an identity with somebody else's e-mail keeps the owner's account."""
    await api.register(ANNA)
    await database.execute(
        "INSERT INTO identities SELECT 'https://issuer.example', 'mallory', user_id, created_at"
        " FROM users"
    )
    assert (await reset(api, await forgotten(api, smtp))).status == 204
    assert await database.fetchval("SELECT count(*) FROM identities") == 0
    await database.execute(
        "INSERT INTO identities (issuer, subject, user_id, created_at, email_key)"
        " SELECT 'https://issuer.example', 'anna', user_id, created_at, email_key FROM users"
    )
    api.clock.ahead = timedelta(hours=1)  # the mailbox has had enough for this one
    token = await forgotten(api, smtp, count=2)
    assert (await reset(api, token, "a third long password")).status == 204
    assert await database.fetchval("SELECT count(*) FROM identities") == 1


async def test_an_account_without_a_password_gets_one(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    await api.register(ANNA)
    await database.execute("UPDATE users SET password_hash = NULL")
    assert (await reset(api, await forgotten(api, smtp))).status == 204
    assert (await api.log_in(ANNA, NEW_PASSWORD)).status == 200


async def test_a_disabled_account_gets_no_mail(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    await api.register(ANNA)
    await mailed(smtp, ANNA, "Confirm")
    await database.execute("UPDATE users SET disabled_at = now()")
    await api.post("/auth/password/forgot", {"email": ANNA})
    await no_jobs(database)
    assert len(smtp.mails) == 1


async def test_a_change_of_password_is_told(api: Api, smtp: SmtpServer) -> None:
    anna = await api.new_person(ANNA)
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert (await api.post("/auth/password/change", body, by=anna)).status == 204
    assert await mailed(smtp, ANNA, "was changed")


async def test_a_change_of_password_ends_the_tokens_of_whoever_knew_the_old_one(
    api: Api, smtp: SmtpServer
) -> None:
    """Else a thief has ten minutes in which to take the account away by its e-mail."""
    anna = await api.new_person(ANNA)
    thief = await api.signed_in(ANNA)
    change = {"new_email": "thief@example.org", "password": PASSWORD}
    assert (await api.post("/auth/email/change", change, by=thief)).status == 202
    [mail] = await mailed(smtp, "thief@example.org", "Confirm your new email address")
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert (await api.post("/auth/password/change", body, by=anna)).status == 204
    assert_unusable(await confirm(api, token_in(mail)))


@pytest.mark.parametrize("way", ["change", "reset"])
async def test_a_mail_asked_for_before_the_password_was_changed_is_not_sent_afterwards(
    mail_environment: dict[str, str],
    smtp: SmtpServer,
    database: asyncpg.Connection,
    redis: object,
    way: str,
) -> None:
    """Else a thief who can hold up his mail server waits there for a token."""
    async with running(read_settings({**mail_environment, "SERVE_JOBS": "off"})) as api:
        anna = await api.new_person(ANNA)
        thief = await api.signed_in(ANNA)
        change = {"new_email": "thief@example.org", "password": PASSWORD}
        assert (await api.post("/auth/email/change", change, by=thief)).status == 202
        if way == "change":
            body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
            assert (await api.post("/auth/password/change", body, by=anna)).status == 204
        else:
            await database.execute("UPDATE sessions SET ended_at = now()")
    async with running(read_settings(mail_environment)):
        await no_jobs(database)
    assert smtp.mails_to("thief@example.org") == []


async def test_tokens_end_with_the_account(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    anna = await api.new_person(ANNA)
    [mail] = await mailed(smtp, ANNA, "Confirm")
    token = await forgotten(api, smtp)
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=anna)).status == 204
    assert_unusable(await confirm(api, token_in(mail)))
    assert_unusable(await reset(api, token))
    assert await database.fetchval("SELECT count(*) FROM mail_tokens") == 0


async def test_a_link_leads_where_the_settings_say_whatever_the_request_claims(
    api: Api, smtp: SmtpServer
) -> None:
    await api.register(ANNA)
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    await api.post("/auth/password/forgot", {"email": ANNA}, headers=headers)
    [mail] = await mailed(smtp, ANNA, "Reset")
    assert mail.links[0].startswith("https://app.example.com/reset-password#token=")
    assert "evil" not in str(mail.message)


# --- Known and unknown e-mails are answered alike.


def without_chance(answer: Answer) -> Any:
    """Return all of an answer but what differs between any two."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    del headers["date"], headers["x-request-id"]
    return answer.status, headers, answer.body


@pytest.mark.parametrize("path", ["/auth/password/forgot", "/auth/email/resend"])
async def test_asking_for_a_mail_is_answered_alike(
    mail_environment: dict[str, str],
    database: asyncpg.Connection,
    redis: object,
    hashes: list[object],
    path: str,
) -> None:
    """The same bytes and the same work: one row, whose payload is what the client sent."""
    # Nobody does the jobs, so that they can be looked at.
    async with running(read_settings({**mail_environment, "SERVE_JOBS": "off"})) as api:
        await api.register("known@example.com")
        await api.register("confirmed@example.com")
        await database.execute(
            "UPDATE users SET email_confirmed_at = now() WHERE email = 'confirmed@example.com'"
        )
        await database.execute("DELETE FROM jobs")
        hashes.clear()
        answers = []
        for name in ("known", "confirmed", "unknown"):
            answers.append(await api.post(path, {"email": f"{name}@example.com"}))
            [written] = await database.fetch("DELETE FROM jobs RETURNING kind, payload")
            assert written["kind"] == "mail"
            assert f'"{name}@example.com"' in written["payload"]
        assert answers[0].status == 202
        assert len({repr(without_chance(answer)) for answer in answers}) == 1
        assert hashes == []


async def test_registering_is_answered_alike_where_emails_are_confirmed(
    mail_environment: dict[str, str],
    database: asyncpg.Connection,
    redis: object,
    hashes: list[object],
) -> None:
    settings = read_settings(
        {**mail_environment, "SERVE_JOBS": "off", "EMAIL_CONFIRMATION": "required"}
    )
    async with running(settings) as api:
        await api.register("unconfirmed@example.com")
        await api.register("confirmed@example.com")
        await database.execute(
            "UPDATE users SET email_confirmed_at = now() WHERE email = 'confirmed@example.com'"
        )
        await database.execute("DELETE FROM jobs")
        hashes.clear()
        answers = []
        for name in ("unconfirmed", "confirmed", "new"):
            answers.append(await api.register(f"{name}@example.com"))
            [written] = await database.fetch("DELETE FROM jobs RETURNING kind, payload")
            assert written["kind"] == "mail"
        assert answers[0].status == 202
        assert answers[0].json() == {"status": "confirmation-sent"}
        assert len({repr(without_chance(answer)) for answer in answers}) == 1
        assert len(hashes) == 3


@pytest.mark.parametrize("code", ["NOBODYS", "?"])
async def test_an_unusable_code_is_refused_alike(strict: Api, code: str) -> None:
    await strict.register(ANNA)
    for email in (ANNA, new_email()):
        answer = await strict.register(email, referral_code=code)
        assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])


async def test_signing_in_tells_nobody_that_an_email_was_new(strict: Api) -> None:
    """Else registering somebody else's e-mail, and signing in, would tell whether it was known."""
    await strict.register(ANNA)
    await strict.register(ANNA, password="the password of a stranger")
    right = await strict.log_in(ANNA)
    wrong = await strict.log_in(ANNA, "the password of a stranger")
    unknown = await strict.log_in("unknown@example.com")
    assert_problem(right, 401, "invalid-credentials")
    bodies = [{**answer.json(), "request_id": ""} for answer in (right, wrong, unknown)]
    assert bodies[0] == bodies[1] == bodies[2]


async def test_the_owner_of_a_known_email_is_told(
    strict: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    await strict.register(ANNA)
    [mail] = await mailed(smtp, ANNA, "Confirm")
    assert (await confirm(strict, token_in(mail))).status == 204
    assert (await strict.log_in(ANNA)).status == 200
    answer = await strict.register(ANNA, password="the password of a stranger")
    assert answer.status == 202
    [note] = await mailed(smtp, ANNA, "You already have an account")
    assert note.links == []
    assert (await strict.log_in(ANNA)).status == 200
    assert await database.fetchval("SELECT count(*) FROM users") == 1


async def test_a_repeated_registration_is_answered_once_and_mailed_once(
    strict: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    key = {"Idempotency-Key": "one"}
    body = {"email": ANNA, "password": PASSWORD}
    answers = [await strict.post("/auth/register", body, headers=key) for _ in range(3)]
    assert [answer.status for answer in answers] == [202] * 3
    assert answers[0].body == answers[1].body
    await no_jobs(database)
    assert len(smtp.mails) == 1


# --- Changing an e-mail.


async def test_a_changed_email_is_confirmed_at_the_new_address_and_told_at_the_old(
    api: Api, smtp: SmtpServer
) -> None:
    anna = await api.new_person(ANNA)
    code = await api.new_code(anna)
    assert (await api.get(f"/referral-code/{ANNA}")).json()["code"] == code
    assert (await api.get("/referral-code/anna@example.org")).status == 404
    body = {"new_email": "anna@example.org", "password": PASSWORD}
    assert (await api.post("/auth/email/change", body, by=anna)).status == 202
    [mail] = await mailed(smtp, "anna@example.org", "Confirm your new email address")
    # Nothing has changed yet.
    assert (await api.get("/users/me", by=anna)).json()["email"] == ANNA
    assert (await confirm(api, token_in(mail))).status == 204
    me = (await api.get("/users/me", by=anna)).json()
    assert (me["email"], me["email_confirmed"]) == ("anna@example.org", True)
    # At once, whatever was cached.
    assert (await api.get(f"/referral-code/{ANNA}")).status == 404
    assert (await api.get("/referral-code/anna@example.org")).json()["code"] == code
    assert await mailed(smtp, ANNA, "Your email address for referrals was changed")
    assert (await api.log_in("anna@example.org")).status == 200
    assert (await api.log_in(ANNA)).status == 401


async def test_what_was_known_of_the_old_email_ends_with_the_change(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    anna = await api.new_person(ANNA)
    await database.execute("UPDATE users SET email_verdict = 'valid', email_verdict_source = 'x'")
    await database.execute(
        "INSERT INTO enrichments SELECT user_id, '{}', NULL, 'x', now() FROM users"
    )
    body = {"new_email": "anna@example.org", "password": PASSWORD}
    await api.post("/auth/email/change", body, by=anna)
    [mail] = await mailed(smtp, "anna@example.org", "Confirm your new email address")
    assert (await confirm(api, token_in(mail))).status == 204
    assert await database.fetchval("SELECT email_verdict FROM users") is None
    assert await database.fetchval("SELECT count(*) FROM enrichments") == 0


async def test_tokens_in_the_old_mailbox_end_with_the_change(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    anna = await api.new_person(ANNA)
    old = await forgotten(api, smtp)
    body = {"new_email": "anna@example.org", "password": PASSWORD}
    await api.post("/auth/email/change", body, by=anna)
    [mail] = await mailed(smtp, "anna@example.org", "Confirm your new email address")
    await confirm(api, token_in(mail))
    assert_unusable(await reset(api, old))
    assert await database.fetchval("SELECT count(*) FROM mail_tokens") == 0


async def test_an_email_of_another_account_is_answered_alike_and_its_owner_is_told(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    anna = await api.new_person(ANNA)
    await api.register("bert@example.com")
    answers = [
        await api.post("/auth/email/change", {"new_email": email, "password": PASSWORD}, by=anna)
        for email in ("bert@example.com", "free@example.com")
    ]
    assert without_chance(answers[0]) == without_chance(answers[1])
    assert await mailed(smtp, "bert@example.com", "You already have an account")
    assert await mailed(smtp, "free@example.com", "Confirm your new email address")
    await no_jobs(database)


async def test_the_own_email_is_spelt_differently_by_a_change(api: Api, smtp: SmtpServer) -> None:
    anna = await api.new_person(ANNA)
    body = {"new_email": "Anna@example.com", "password": PASSWORD}
    assert (await api.post("/auth/email/change", body, by=anna)).status == 202
    [mail] = await mailed(smtp, "Anna@example.com", "Confirm your new email address")
    assert (await confirm(api, token_in(mail))).status == 204
    assert (await api.get("/users/me", by=anna)).json()["email"] == "Anna@example.com"


async def test_an_email_that_was_taken_meanwhile_is_not_given_twice(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    """Without the unique constraint there would be two accounts with it."""
    anna = await api.new_person(ANNA)
    body = {"new_email": "new@example.com", "password": PASSWORD}
    await api.post("/auth/email/change", body, by=anna)
    [mail] = await mailed(smtp, "new@example.com", "Confirm your new email address")
    assert (await api.register("new@example.com")).status == 201
    assert_unusable(await confirm(api, token_in(mail)))
    assert (await api.get("/users/me", by=anna)).json()["email"] == ANNA


Deed = Callable[[Api, Person], Awaitable[object]]


async def sign_out(api: Api, anna: Person) -> None:
    assert (await api.post("/auth/logout", by=anna)).status == 204


async def end_from_another_session(api: Api, anna: Person) -> None:
    other = await api.signed_in(ANNA)
    shown = (await api.get("/auth/sessions", by=anna)).json()["items"]
    [session] = [one for one in shown if one["current"]]
    assert (await api.delete(f"/auth/sessions/{session['id']}", by=other)).status == 204


async def end_the_others(api: Api, anna: Person) -> None:
    other = await api.signed_in(ANNA)
    assert (await api.delete("/auth/sessions", by=other)).status == 204


async def disable(api: Api, anna: Person, *, enable: bool = False) -> None:
    admin = await new_admin(api)
    for disabled in (True, False) if enable else (True,):
        body = {"disabled": disabled}
        assert (await api.patch(f"/admin/users/{anna.user_id}", body, by=admin)).status == 200


async def disable_and_enable(api: Api, anna: Person) -> None:
    await disable(api, anna, enable=True)


async def change_the_password_elsewhere(api: Api, anna: Person) -> None:
    other = await api.signed_in(ANNA)
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert (await api.post("/auth/password/change", body, by=other)).status == 204


async def send_an_old_refresh_token(api: Api, anna: Person) -> None:
    for status in (200, 401):
        body = {"refresh_token": anna.refresh_token}
        assert (await api.post("/auth/refresh", body)).status == status


ENDINGS = [
    sign_out,
    end_from_another_session,
    end_the_others,
    disable,
    disable_and_enable,
    change_the_password_elsewhere,
    send_an_old_refresh_token,
]


@pytest.mark.parametrize("end", ENDINGS)
async def test_a_change_ends_with_the_session_that_asked_for_it(
    api: Api, smtp: SmtpServer, end: Deed
) -> None:
    anna = await api.new_person(ANNA)
    body = {"new_email": "thief@example.org", "password": PASSWORD}
    await api.post("/auth/email/change", body, by=anna)
    [mail] = await mailed(smtp, "thief@example.org", "Confirm your new")
    await end(api, anna)
    assert_unusable(await confirm(api, token_in(mail)))


@pytest.mark.parametrize("end", ENDINGS)
async def test_a_change_whose_mail_is_late_ends_with_the_session_too(
    mail_environment: dict[str, str],
    smtp: SmtpServer,
    database: asyncpg.Connection,
    redis: object,
    end: Deed,
) -> None:
    async with running(read_settings({**mail_environment, "SERVE_JOBS": "off"})) as api:
        anna = await api.new_person(ANNA)
        body = {"new_email": "thief@example.org", "password": PASSWORD}
        assert (await api.post("/auth/email/change", body, by=anna)).status == 202
        await end(api, anna)
    async with running(read_settings(mail_environment)):
        await no_jobs(database)
    assert smtp.mails_to("thief@example.org") == []


async def test_a_change_ends_when_its_session_expires(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    anna = await api.new_person(ANNA)
    await database.execute("UPDATE sessions SET expires_at = now() + interval '5 minutes'")
    body = {"new_email": "thief@example.org", "password": PASSWORD}
    await api.post("/auth/email/change", body, by=anna)
    [mail] = await mailed(smtp, "thief@example.org", "Confirm your new")
    api.clock.ahead += timedelta(minutes=6)
    assert_unusable(await confirm(api, token_in(mail)))


async def test_a_change_ends_with_a_reset_of_the_password(api: Api, smtp: SmtpServer) -> None:
    anna = await api.new_person(ANNA)
    body = {"new_email": "thief@example.org", "password": PASSWORD}
    await api.post("/auth/email/change", body, by=anna)
    [mail] = await mailed(smtp, "thief@example.org", "Confirm your new")
    assert (await reset(api, await forgotten(api, smtp))).status == 204
    assert_unusable(await confirm(api, token_in(mail)))


async def test_a_session_ends_no_change_that_another_asked_for(api: Api, smtp: SmtpServer) -> None:
    anna, other = await api.new_person(ANNA), await api.signed_in(ANNA)
    body = {"new_email": "anna@example.org", "password": PASSWORD}
    await api.post("/auth/email/change", body, by=anna)
    [mail] = await mailed(smtp, "anna@example.org", "Confirm your new")
    await sign_out(api, other)
    assert (await confirm(api, token_in(mail))).status == 204


@pytest.mark.parametrize("how", ["signed out", "disabled"])
async def test_a_sign_out_that_is_under_way_is_waited_for(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection, how: str
) -> None:
    """Without FOR SHARE in LOCK_OPEN, or the lock of the user, the change slips through."""
    anna = await api.new_person(ANNA)
    body = {"new_email": "thief@example.org", "password": PASSWORD}
    await api.post("/auth/email/change", body, by=anna)
    [mail] = await mailed(smtp, "thief@example.org", "Confirm your new")
    await no_jobs(database)
    user_id, now = UUID(anna.user_id), api.clock()
    async with api.app[SERVICES].database.transaction() as repositories:
        if how == "disabled":
            await repositories.users.set_disabled(user_id, now)
        else:
            await repositories.sessions.end_all_but(user_id, None, now)
        confirming = await until_blocked(database, confirm(api, token_in(mail)))
    assert_unusable(await confirming)
    assert await database.fetchval("SELECT email FROM users") == ANNA


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({"new_email": "b@example.com", "password": "wrong"}, 401, "password"),
        ({"new_email": "b@example.com"}, 422, "password"),
        ({"new_email": "nonsense", "password": PASSWORD}, 422, "new_email"),
        ({"password": PASSWORD}, 422, "new_email"),
    ],
)
async def test_a_change_that_proves_nothing_is_refused(
    api: Api, body: dict[str, str], status: int, pointer: str
) -> None:
    anna = await api.new_person(ANNA)
    answer = await api.post("/auth/email/change", body, by=anna)
    code = "invalid-credentials" if status == 401 else "validation-failed"
    assert_problem(answer, status, code, [f"#/{pointer}"])


async def test_guessing_the_password_of_a_change_is_limited(
    mail_environment: dict[str, str], database: object, redis: object
) -> None:
    settings = read_settings({**mail_environment, "RATE_LIMIT_LOGIN": "4/minute"})
    async with running(settings) as api:
        anna = await api.new_person(ANNA)
        body = {"new_email": "anna@example.org", "password": "wrong"}
        guesses = [await api.post("/auth/email/change", body, by=anna) for _ in range(5)]
        statuses = [answer.status for answer in guesses]
        assert statuses == [401, 401, 401, 401, 429]


async def test_who_resets_a_password_need_not_wait_for_failures_of_before(
    mail_environment: dict[str, str], database: object, redis: object, smtp: SmtpServer
) -> None:
    settings = read_settings({**mail_environment, "RATE_LIMIT_LOGIN": "99/minute"})
    async with running(settings) as api:
        await api.register(ANNA)
        guesses = [(await api.log_in(ANNA, "wrong")).status for _ in range(6)]
        assert guesses == [*[401] * 5, 429]
        assert (await reset(api, await forgotten(api, smtp))).status == 204
        assert (await api.log_in(ANNA, NEW_PASSWORD)).status == 200


# --- Disposable e-mails.


async def test_a_disposable_email_has_to_be_confirmed(
    api: Api, smtp: SmtpServer, admin: Person
) -> None:
    email = "anna@sub.mailinator.com"
    registered = await api.register(email)
    assert registered.status == 201
    assert_problem(await api.log_in(email), 401, "invalid-credentials")
    shown = (await api.get(f"/admin/users/{registered.json()['id']}", by=admin)).json()
    assert shown["awaits_confirmation"]
    assert shown["email_verification"]["verdict"] == "disposable"
    assert shown["email_verification"]["source"] == "local"
    [mail] = await mailed(smtp, email, "Confirm")
    assert (await confirm(api, token_in(mail))).status == 204
    assert (await api.log_in(email)).status == 200


# --- Mail servers that do not do as they should.


@pytest.mark.usefixtures("short_dialogues")
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([refuse("450 4.2.1 Try again later"), accept], id="later"),
        pytest.param([refuse("421 4.3.2 Going down"), accept], id="going down"),
        pytest.param([refuse("451 4.3.0 Trouble", at=Stage.DATA), accept], id="later, at DATA"),
        pytest.param([hang(), accept], id="hangs at once"),
        pytest.param([hang(Stage.RECIPIENT), accept], id="hangs"),
        pytest.param([drop(), accept], id="ends the connection"),
        pytest.param([refuse("554 5.3.2 No service here", at=Stage.GREETING), accept], id="554"),
    ],
)
async def test_a_mail_that_was_not_taken_is_sent_later_once(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection, steps: list[Any]
) -> None:
    smtp.play(*steps)
    await api.register(ANNA)
    [mail] = await mailed(smtp, ANNA, "Confirm")
    await no_jobs(database)
    assert len(smtp.mails) == 1
    assert (await confirm(api, token_in(mail))).status == 204


@pytest.mark.usefixtures("short_dialogues")
@pytest.mark.parametrize("step", [stored_then_dropped, stored_then_hung])
async def test_a_mail_that_was_taken_without_a_word_is_sent_twice_under_one_id(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection, step: Any
) -> None:
    smtp.play(step, accept)
    await api.register(ANNA)
    first, second = await mailed(smtp, ANNA, "Confirm", 2)
    await no_jobs(database)
    assert len(smtp.mails) == 2
    assert first.message["Message-ID"] == second.message["Message-ID"]
    assert (await confirm(api, token_in(second))).status == 204


async def test_a_mail_that_is_refused_for_good_is_parked(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    smtp.play(refuse("550 5.1.1 No such user"), accept)
    await api.register(ANNA)
    await api.register("bert@example.com")
    assert await mailed(smtp, "bert@example.com", "Confirm")
    await no_jobs(database)
    [parked] = await database.fetch("SELECT * FROM jobs")
    assert (parked["tries"], parked["last_error"]) == (1, "SMTPRecipientsRefused 550")


async def test_what_was_given_up_is_erased_with_the_account(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    """A parked job would keep the e-mail for a month."""
    smtp.play(refuse("550 5.1.1 No such user"))
    anna = await api.new_person(ANNA)
    await api.post("/auth/password/forgot", {"email": "ANNA@EXAMPLE.com"})
    await api.register("bert@example.com")
    await no_jobs(database)
    assert await database.fetchval("SELECT count(*) FROM jobs") == 3
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=anna)).status == 204
    await no_jobs(database)
    [left] = await database.fetch("SELECT payload FROM jobs")
    assert "bert@example.com" in left["payload"]


async def test_that_we_have_not_signed_in_is_not_the_mails_fault(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    """The server says so when it hears the sender: 530 5.7.0 Authentication required."""
    smtp.credentials = ("referrals", "right")
    await api.register(ANNA)
    async with asyncio.timeout(10):
        while not await database.fetchval("SELECT last_error FROM jobs"):
            await asyncio.sleep(0.02)
    [job] = await database.fetch("SELECT * FROM jobs")
    assert job["parked_at"] is None
    assert "SMTPSenderRefused 530" in job["last_error"]
    smtp.credentials = None
    assert await mailed(smtp, ANNA, "Confirm")


async def test_a_wrong_password_of_ours_is_not_the_mails_fault(
    mail_environment: dict[str, str], database: asyncpg.Connection, redis: object
) -> None:
    async with SmtpServer(credentials=("referrals", "right")).serving() as smtp:
        for password, login in (("wrong", None), ("right", "referrals")):
            url = smtp.url.replace("//", f"//referrals:{password}@")
            async with running(read_settings({**mail_environment, "SMTP_URL": url})) as api:
                if login is None:
                    await api.register(ANNA)
                    await asyncio.sleep(0.5)
                    [job] = await database.fetch("SELECT * FROM jobs")
                    assert job["parked_at"] is None
                    assert "SMTPAuthenticationError 535" in job["last_error"]
                else:
                    [mail] = await mailed(smtp, ANNA, "Confirm")
                    assert mail.login == login


async def test_a_password_of_ours_goes_to_no_other_machine_in_the_clear(
    mail_environment: dict[str, str], database: asyncpg.Connection, redis: object
) -> None:
    """127.0.0.2 is, by its name, not this one."""
    server = SmtpServer(credentials=("referrals", "right"))
    async with server.serving("127.0.0.2") as smtp:
        url = smtp.url.replace("//", "//referrals:right@")
        async with running(read_settings({**mail_environment, "SMTP_URL": url})) as api:
            await api.register(ANNA)
            async with asyncio.timeout(10):
                while not await database.fetchval("SELECT last_error FROM jobs"):
                    await asyncio.sleep(0.02)
        assert smtp.connections > 0
        assert smtp.mails == []


async def test_the_first_reset_of_an_unconfirmed_account_ends_what_a_stranger_has_put_there(
    api: Api, smtp: SmtpServer
) -> None:
    """The live code, the stranger's sessions, and the account's own referral."""
    thief = await api.new_person("thief@example.com")
    code = await api.new_code(thief)
    squatter = await api.new_person(ANNA, referral_code=code)
    await api.new_code(squatter, code="CELEBRITY")
    assert (await api.get(f"/referral-code/{ANNA}")).status == 200

    assert (await reset(api, await forgotten(api, smtp))).status == 204
    assert (await api.get("/users/me", by=squatter)).status == 401
    assert (await api.get(f"/referral-code/{ANNA}")).status == 404
    tokens = (await api.log_in(ANNA, NEW_PASSWORD)).json()
    user = (await api.get("/users/me", by=tokens["access_token"])).json()
    assert user["referrer_id"] is None
    assert user["email_confirmed"]
    assert (await api.get("/referrals/me", by=thief)).json()["items"] == []
    activity = (await api.get("/users/me/activity", by=tokens["access_token"])).json()["items"]
    assert [item["event"] for item in activity[:3]] == [
        "sign_in.succeeded",
        "password.reset",
        "account.reclaimed",
    ]


async def test_the_reset_of_a_confirmed_account_leaves_its_code_and_its_referral(
    api: Api, smtp: SmtpServer
) -> None:
    bert = await api.new_person("bert@example.com")
    anna = await api.new_person(ANNA, referral_code=await api.new_code(bert))
    await confirm(api, token_in((await mailed(smtp, ANNA, "Confirm"))[0]))
    await api.new_code(anna)
    assert (await reset(api, await forgotten(api, smtp))).status == 204
    assert (await api.get(f"/referral-code/{ANNA}")).status == 200
    [referral] = (await api.get("/referrals/me", by=bert)).json()["items"]
    assert referral["id"] == anna.user_id
