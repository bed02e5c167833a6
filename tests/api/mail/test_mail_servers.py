"""Mail servers that misbehave, and disposable email addresses."""

from typing import Any

import asyncpg
import pytest

from service.settings.settings import read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.api.mailing import ANNA, confirm, mailed, token_in
from tests.factories import PASSWORD, Api, Person, running
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
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("impatient")


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


# --- Mail servers that misbehave.


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
    """A parked job would keep the email address for a month."""
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
    await until(lambda: database.fetchval("SELECT last_error FROM jobs"))
    [job] = await database.fetch("SELECT * FROM jobs")
    assert job["parked_at"] is None
    assert job["last_error"] == "SMTPSenderRefused 530"
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
                    await until(lambda: database.fetchval("SELECT last_error FROM jobs"))
                    [job] = await database.fetch("SELECT * FROM jobs")
                    assert job["parked_at"] is None
                    assert job["last_error"] == "SMTPAuthenticationError 535"
                else:
                    [mail] = await mailed(smtp, ANNA, "Confirm")
                    assert mail.login == login


async def test_a_password_of_ours_goes_to_no_other_machine_in_the_clear(
    mail_environment: dict[str, str], database: asyncpg.Connection, redis: object
) -> None:
    """By its name, 127.0.0.2 is another machine."""
    server = SmtpServer(credentials=("referrals", "right"))
    async with server.serving("127.0.0.2") as smtp:
        url = smtp.url.replace("//", "//referrals:right@")
        async with running(read_settings({**mail_environment, "SMTP_URL": url})) as api:
            await api.register(ANNA)
            await until(lambda: database.fetchval("SELECT last_error FROM jobs"))
        assert smtp.connections > 0
        assert smtp.mails == []
