"""Known and unknown email addresses are answered alike."""

from typing import Any

import asyncpg
import pytest

from service.settings.settings import read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.api.mailing import ANNA, confirm, mailed, token_in
from tests.factories import PASSWORD, Answer, Api, new_email, running
from tests.stand_ins.smtp import SmtpServer

pytestmark = pytest.mark.usefixtures("impatient")


def without_chance(answer: Answer) -> Any:
    """Return what of an answer must not differ between two."""
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
    # No worker runs, so the jobs can be inspected.
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
    """Otherwise registering another's address, and signing in, would show whether it was known."""
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
