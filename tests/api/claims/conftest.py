"""Registering where email addresses are confirmed first: a claim each, and one becomes the account.

Nobody does the jobs but the tests themselves: no decision waits for a mail.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

import asyncpg
import pytest

from service.settings.settings import Settings, read_settings
from tests.api.mailing import ANNA, Postman, confirm
from tests.factories import PASSWORD, Api, Person, running
from tests.stand_ins.smtp import SmtpServer

ATTACKERS: Final = "the password of a stranger"
VICTIMS: Final = "the password of anna"


@pytest.fixture
def settings(mail_environment: dict[str, str]) -> Settings:
    return read_settings(
        {**mail_environment, "SERVE_JOBS": "off", "EMAIL_CONFIRMATION": "required"}
    )


@pytest.fixture
async def strict(
    settings: Settings, database: asyncpg.Connection, redis: object
) -> AsyncIterator[Api]:
    async with running(settings) as api:
        yield api


@pytest.fixture
def postman(strict: Api, settings: Settings, smtp: SmtpServer) -> Postman:
    return Postman.of(strict, settings, smtp)


@pytest.fixture
async def lax(settings: Settings, database: object, redis: object) -> AsyncIterator[Api]:
    """The service as it was before email addresses had to be confirmed."""
    async with running(replace(settings, confirmation_required=False)) as api:
        yield api


async def register(api: Api, email: str = ANNA, password: str = PASSWORD, **members: Any) -> None:
    answer = await api.register(email, password=password, **members)
    assert answer.status == 202, answer.body
    assert answer.json() == {"status": "confirmation-sent"}


async def new_person(api: Api, postman: Postman, email: str, **members: Any) -> Person:
    """Register, confirm and sign in."""
    await register(api, email, **members)
    [token] = await postman.tokens()
    assert (await confirm(api, token)).status == 204
    return await api.signed_in(email)


async def passwords(api: Api, email: str = ANNA) -> dict[str, int]:
    """Return how signing in with each of the two passwords is answered."""
    return {
        password: (await api.log_in(email, password)).status for password in (ATTACKERS, VICTIMS)
    }


async def rows(database: asyncpg.Connection) -> dict[str, int]:
    """Return how many accounts, claims and tokens there are."""
    return {
        table: await database.fetchval(f"SELECT count(*) FROM {table}")
        for table in ("users", "claims", "mail_tokens")
    }


@pytest.fixture
async def admin_of_lax(lax: Api, database: asyncpg.Connection) -> Person:
    await lax.register("admin@example.com")
    await database.execute("UPDATE users SET role = 'admin', email_confirmed_at = now()")
    return await lax.signed_in("admin@example.com")
