"""What PostgreSQL writes into a log of its own: errors, and the keys that violated a constraint."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from service import embedded
from service.api.http import app_keys
from service.domain.emails import parse_email
from service.domain.identities import Identity, IdentityTaken
from service.postgresql.migrations import apply_migrations
from service.settings.settings import read_settings
from tests.api.mailing import confirm, mailed, token_in
from tests.factories import PASSWORD, Api, running
from tests.stand_ins.smtp import SmtpServer

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def logging_server(
    mail_environment: dict[str, str], tmp_path: Path
) -> Iterator[tuple[dict[str, str], Path]]:
    """The environment of a service on a PostgreSQL whose log can be read, and that log."""
    with embedded.postgresql(tmp_path, durable=False) as url:
        apply_migrations(url)
        yield {**mail_environment, "DATABASE_URL": url}, tmp_path / "postgresql.log"


@pytest.mark.parametrize("confirmation", ["off", "required"])
async def test_no_email_address_is_in_the_log_of_postgresql(
    logging_server: tuple[dict[str, str], Path], smtp: SmtpServer, confirmation: str, redis: object
) -> None:
    """Without `ON CONFLICT` in an INSERT it would say `Key (email_key)=(…) already exists`."""
    environment, log = logging_server
    settings = read_settings({**environment, "EMAIL_CONFIRMATION": confirmation})
    async with running(settings) as api:
        emails = ["anna@example.com", *["bert@example.com"] * 10, "Anna@Example.Com"]
        await asyncio.gather(*map(api.register, emails))
        for email in emails:
            await api.register(email)
        if confirmation == "off":
            await change_to_one_that_is_taken(api, smtp, "anna@example.com", "carl@example.com")
            await link_twice(api, "carl@example.com")
    with (
        psycopg.connect(environment["DATABASE_URL"]) as connection,
        pytest.raises(psycopg.errors.DivisionByZero),
    ):
        connection.execute("SELECT 1 / 0")
    written = log.read_text()
    assert "division by zero" in written, "errors are written at all"
    assert "@" not in written, [line for line in written.splitlines() if "@" in line]
    assert "example" not in written.lower()


async def change_to_one_that_is_taken(api: Api, smtp: SmtpServer, email: str, other: str) -> None:
    """Change somebody's email address to one that somebody registers before it is confirmed."""
    person = await api.signed_in(email)
    change = {"new_email": other, "password": PASSWORD}
    assert (await api.post("/auth/email/change", change, by=person)).status == 202
    [mail] = await mailed(smtp, other, "Confirm")
    await api.register(other)
    assert (await confirm(api, token_in(mail))).status == 422


async def link_twice(api: Api, subject: str) -> None:
    """Have two requests at once store an identity whose issuer takes email addresses for names."""
    database = api.app[app_keys.SERVICES].database
    identity = Identity(
        issuer="https://issuer.test",
        subject=subject,
        email=parse_email(subject),
        email_verified=True,
    )
    async with database.autocommit() as repositories:
        user = await repositories.users.find_by_email("anna@example.com")
    assert user is not None
    async with database.transaction() as repositories:
        await repositories.identities.add(identity, user.user_id, api.clock())
    with pytest.raises(IdentityTaken):
        async with database.transaction() as repositories:
            await repositories.identities.add(identity, user.user_id, api.clock())
