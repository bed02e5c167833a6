"""Resetting a password, driven end to end through a real SMTP server."""

import json
from datetime import timedelta

import asyncpg
import pytest

from service.api.http.app_keys import SETTINGS
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
from tests.factories import PASSWORD, Api, Person, running
from tests.oauth import new_application, refusal
from tests.stand_ins.smtp import SmtpServer

pytestmark = pytest.mark.usefixtures("impatient")


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
    # Anyone who reads the mail owns the address.
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
    """CVE-2019-19844: an address that merely compares equal may be somebody else's."""
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
        for unacceptable in ("short", "password123"):  # which needs no look-up
            answer = await reset(api, token, unacceptable)
            assert_problem(answer, 422, "validation-failed", ["#/new_password"])
        assert_unusable(await reset(api, token, ANNA))  # it is nobody's
    fresh = await forgotten(api, smtp, count=2)
    await api.post("/auth/email/resend", {"email": ANNA})
    [_, second] = await mailed(smtp, ANNA, "Confirm", 2)
    assert_unusable(await reset(api, token_in(second)))
    assert hashes == []
    assert (await reset(api, fresh)).status == 204


async def test_what_a_reset_or_a_change_makes_old_is_forgotten_by_a_job_too(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    """The process may die between the commit and the cache."""
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
    """Otherwise an identity with somebody else's address would keep the owner's account."""
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
    """Otherwise a thief would have ten minutes to take the account over by its address."""
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
    """Otherwise a thief who delays their own mail server could wait there for a token."""
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
