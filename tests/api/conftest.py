"""What several tests of the contract start from."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import psycopg
import pytest

from service.postgresql.migrations import apply_migrations
from service.providers import circuit_breaker
from service.security.password_hashing import PasswordHasher
from service.settings.settings import Settings
from service.use_cases import jobs
from tests.api.issuer import ADA, CLIENT_ID, CLIENT_SECRET, GitHub, Issuer, Key, served
from tests.conftest import Servers
from tests.factories import Api, MovableClock, Person, running
from tests.stand_ins.clearbit import Clearbit
from tests.stand_ins.hunter import Hunter
from tests.stand_ins.smtp import SmtpServer


@pytest.fixture
async def other(api: Api, settings: Settings) -> AsyncIterator[Api]:
    """Another process of the service, as far as its memory goes, on the same servers."""
    async with running(settings) as other:
        yield other


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every wait of the workers short, to see what comes behind it."""
    monkeypatch.setattr(circuit_breaker, "OPEN_SECONDS", 0.1)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(jobs, "LONGEST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(jobs, "wait_after", lambda tries: timedelta(seconds=0.05))


async def no_jobs(
    database: asyncpg.Connection, clock: MovableClock | None = None, step: timedelta = timedelta()
) -> None:
    """Wait until no job is left but parked ones; `clock` goes on by `step` with every look."""
    async with asyncio.timeout(20):
        while await database.fetchval("SELECT count(*) FROM jobs WHERE parked_at IS NULL"):
            if clock is not None:
                clock.ahead += step
            await asyncio.sleep(0.02)


@asynccontextmanager
async def replacing_the_only_code(settings: Settings) -> AsyncIterator[None]:
    """Replace the one code that there is, in a transaction that commits when the block ends."""
    connection = await asyncpg.connect(settings.database_url)
    try:
        async with connection.transaction():
            await connection.execute("UPDATE referral_codes SET ended_at = now()")
            yield
            await connection.execute(
                "INSERT INTO referral_codes"
                " (referral_code_id, owner_id, code, created_at, expires_at)"
                " SELECT gen_random_uuid(), owner_id, 'NEW-CODE', now(), expires_at"
                " FROM referral_codes"
            )
    finally:
        await connection.close()


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every password hash that is computed."""
    counted: list[object] = []
    run = PasswordHasher._run

    async def count(self: PasswordHasher, work: Callable[[], Any]) -> Any:
        counted.append(work)
        return await run(self, work)

    monkeypatch.setattr(PasswordHasher, "_run", count)
    return counted


@pytest.fixture
async def hunter() -> AsyncIterator[Hunter]:
    async with Hunter().serving() as hunter:
        yield hunter


@pytest.fixture
async def clearbit() -> AsyncIterator[Clearbit]:
    async with Clearbit().serving() as clearbit:
        yield clearbit


@pytest.fixture
async def smtp() -> AsyncIterator[SmtpServer]:
    async with SmtpServer().serving() as smtp:
        yield smtp


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer("", [Key.es256("first")], dict(ADA))
    async with served(issuer.answer) as issuer.url:
        yield issuer


@pytest.fixture
async def github() -> AsyncIterator[tuple[GitHub, str]]:
    github = GitHub()
    async with served(github.answer) as url:
        yield github, url


@pytest.fixture
def provider_environment(issuer: Issuer, github: tuple[GitHub, str]) -> dict[str, str]:
    """What the environment of a service adds that lets the issuer and GitHub sign users in."""
    return {
        "PROVIDERS": "corp,github",
        "PROVIDER_CORP_ISSUER": issuer.url,
        "PROVIDER_CORP_CLIENT_ID": CLIENT_ID,
        "PROVIDER_CORP_CLIENT_SECRET": CLIENT_SECRET,
        "PROVIDER_CORP_TITLE": "The corporation",
        "PROVIDER_GITHUB_CLIENT_ID": CLIENT_ID,
        "PROVIDER_GITHUB_CLIENT_SECRET": CLIENT_SECRET,
        "PROVIDER_GITHUB_AUTHORIZE_URL": f"{github[1]}/login/oauth/authorize",
        "PROVIDER_GITHUB_TOKEN_URL": f"{github[1]}/login/oauth/access_token",
        "PROVIDER_GITHUB_API_URL": github[1],
    }


@pytest.fixture
def mail_environment(environment: dict[str, str], smtp: SmtpServer) -> dict[str, str]:
    """The environment of a service that sends mails."""
    return {
        **environment,
        "SMTP_URL": smtp.url,
        "MAIL_FROM": "referrals@example.com",
        "APP_URL": "https://app.example.com",
    }


@pytest.fixture
async def anna(api: Api) -> Person:
    return await api.new_person("anna@example.com")


@pytest.fixture
async def admin(api: Api, database: asyncpg.Connection) -> Person:
    """Somebody who has been made an admin, and has signed in since."""
    await api.register("admin@example.com")
    await database.execute("UPDATE users SET role = 'admin' WHERE email = 'admin@example.com'")
    return await api.signed_in("admin@example.com")


@pytest.fixture
def own_database(servers: Servers, settings: Settings) -> Iterator[Settings]:
    """Settings with a migrated database for one test alone, which may break it."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            url = urlsplit(servers.database_url)._replace(path=f"/{name}").geturl()
            apply_migrations(url)
            yield replace(settings, database_url=url)
        finally:
            connection.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
