"""A service that lets a scripted issuer and GitHub sign users in."""

from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest
from redis.asyncio import Redis

from service.providers.settings import MailSettings, SmtpSettings
from service.settings.settings import Settings, read_settings
from tests.api.mailing import Postman
from tests.factories import Api, running
from tests.stand_ins.smtp import SmtpServer


@pytest.fixture
def settings(environment: dict[str, str], provider_environment: dict[str, str]) -> Settings:
    return read_settings({**environment, **provider_environment})


@pytest.fixture
async def api(
    settings: Settings, database: asyncpg.Connection, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    """A running service that is less patient with issuers than a real one."""
    monkeypatch.setattr("service.providers.http.TOTAL_SECONDS", 0.5)
    async with running(settings) as api:
        yield api


@pytest.fixture
def strict_settings(settings: Settings, smtp: SmtpServer) -> Settings:
    mail = MailSettings(
        sender="referrals@example.com",
        app_url="https://app.example.com",
        delivery=SmtpSettings(
            host=smtp.host, port=smtp.port, user=None, password=None, implicit_tls=False
        ),
    )
    return replace(settings, mail=mail, confirmation_required=True, serve_jobs=False)


@pytest.fixture
async def strict(
    strict_settings: Settings, database: asyncpg.Connection, redis: Redis
) -> AsyncIterator[Api]:
    async with running(strict_settings) as api:
        yield api


@pytest.fixture
def postman(strict: Api, strict_settings: Settings, smtp: SmtpServer) -> Postman:
    return Postman.of(strict, strict_settings, smtp)
