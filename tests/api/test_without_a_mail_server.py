"""What needs a mail server, where there is none."""

import asyncpg

from tests.api.assertions import assert_problem
from tests.factories import PASSWORD, Api, Person


async def test_an_email_is_not_changed_by_a_mail_that_nobody_sends(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    body = {"new_email": "anna@example.org", "password": PASSWORD}
    answer = await api.post("/auth/email/change", body, by=anna)
    assert_problem(answer, 503, "mail-unavailable")
    assert answer.headers["Retry-After"] == "60"
    malformed = await api.post("/auth/email/change", {**body, "new_email": "x"}, by=anna)
    assert_problem(malformed, 422, "validation-failed", ["#/new_email"])
    assert (await api.post("/auth/email/change", body)).status == 401
    assert await database.fetchval("SELECT count(*) FROM jobs WHERE kind = 'mail'") == 0


async def test_what_is_answered_alike_for_everybody_still_is(api: Api, anna: Person) -> None:
    for path in ("/auth/password/forgot", "/auth/email/resend"):
        for email in (anna.email, "nobody@example.com"):
            assert (await api.post(path, {"email": email})).status == 202
