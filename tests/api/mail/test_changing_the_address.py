"""Changing an email address, driven end to end through a real SMTP server."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.settings.settings import read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.api.mail.test_known_and_unknown import without_chance
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
from tests.oauth import new_admin
from tests.sql.racing import until_blocked
from tests.stand_ins.smtp import SmtpServer

pytestmark = pytest.mark.usefixtures("impatient")


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
