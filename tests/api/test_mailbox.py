"""The mailbox of `make run`: there for developers, and nowhere else."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from service.settings import read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.factories import Api, running

MAILBOX = "//dev/mailbox"

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
async def developing(
    environment: dict[str, str], tmp_path: Path, database: asyncpg.Connection, redis: object
) -> AsyncIterator[Api]:
    """A service whose mails go into a folder, under a name that a page must not believe."""
    named = {**environment, "SERVICE_NAME": "<script>alert(1)</script>"}
    async with running(read_settings(named, tmp_path / "mailbox")) as api:
        yield api


async def registered(api: Api, database: asyncpg.Connection, *emails: str) -> None:
    """Register people, and wait until their mails are in the mailbox."""
    for email in emails:
        assert (await api.register(email)).status == 201
    await no_jobs(database)


async def test_before_the_first_mail_it_says_so(developing: Api) -> None:
    answer = await developing.get(MAILBOX)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"No mail yet." in answer.body
    assert (await developing.get(MAILBOX, headers={"Accept": "application/json"})).json() == {
        "items": []
    }


async def test_the_newest_mails_are_shown_with_their_tokens(
    developing: Api, database: asyncpg.Connection
) -> None:
    await registered(developing, database, "anna@example.com", "bert@example.com")
    answer = await developing.get(MAILBOX, headers={"Accept": "application/json"})
    assert answer.headers["Content-Type"] == "application/json"
    items = answer.json()["items"]
    assert [item["to"] for item in items] == ["bert@example.com", "anna@example.com"]
    assert set(items[0]) == {"to", "subject", "date", "text"}
    token = items[1]["text"].partition("confirm:")[2].split()[0]
    assert (await developing.post("/auth/email/confirm", {"token": token})).status == 204


async def test_a_mail_is_shown_as_text_on_a_page_that_runs_nothing(
    developing: Api, database: asyncpg.Connection
) -> None:
    await registered(developing, database, "anna@example.com")
    answer = await developing.get(MAILBOX)
    page = answer.body.decode()
    assert "To anna@example.com" in page
    assert "<h2>Confirm your email address for &lt;script&gt;alert(1)&lt;/script&gt;</h2>" in page
    assert "<script" not in page
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'nonce-")
    assert "script-src" not in policy
    assert answer.headers["Cache-Control"] == "no-store"


async def test_it_is_not_there_in_production(
    api: Api, mail_environment: dict[str, str], tmp_path: Path
) -> None:
    """Else everybody would read everybody's tokens."""
    assert_problem(await api.get(MAILBOX), 404, "not-found")
    # Nor where mails go to a mail server, although there is a folder for them.
    settings = read_settings(mail_environment, tmp_path / "mailbox")
    async with running(settings) as with_smtp:
        assert_problem(await with_smtp.get(MAILBOX), 404, "not-found")
