"""Services that send mails to a scripted SMTP server."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.providers import mail
from service.settings.settings import read_settings
from tests.factories import Api, running


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
    """A service where email addresses have to be confirmed."""
    settings = read_settings({**mail_environment, "EMAIL_CONFIRMATION": "required"})
    async with running(settings) as api:
        yield api


@pytest.fixture
def short_dialogues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up early on a mail server that hangs."""
    monkeypatch.setattr(mail, "TOTAL_SECONDS", 0.5)
