"""One line for each request, with what an operator needs and nothing that must stay secret."""

import json
import logging
from dataclasses import replace
from uuid import UUID

import asyncpg
import psycopg
import pytest

from service.api.http.app_keys import ACCESS_LOG, SERVICES
from service.settings.settings import Settings
from service.telemetry.logs import JsonFormatter, TextFormatter
from tests.api.wire import send
from tests.factories import PASSWORD, Api, Person, running

NEW_PASSWORD = "another walk by the sea"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What all loggers say, from the least important line on."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    return caplog


def access_lines(api: Api, log: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    api.app[ACCESS_LOG].flush()
    records = [record for record in log.records if record.name == "service.access"]
    lines = [line for record in records for line in JsonFormatter().format(record).splitlines()]
    return [json.loads(line) for line in lines]


async def test_a_request_is_one_line_with_these_members(
    api: Api, anna: Person, log: pytest.LogCaptureFixture
) -> None:
    api.app[ACCESS_LOG].flush()
    log.clear()
    answer = await api.get("/users/me", by=anna)
    [line] = access_lines(api, log)
    assert isinstance(line.pop("duration_ms"), float)
    assert str(line.pop("time")).endswith("Z")
    assert line == {
        "level": "info",
        "logger": "service.access",
        "message": "request",
        "method": "GET",
        "route": "/api/v1/users/me",
        "status": 200,
        "user_id": anna.user_id,
        "request_id": answer.headers["X-Request-Id"],
    }


async def test_what_is_answered_last_is_written_before_the_end(
    settings: Settings, database: asyncpg.Connection, log: pytest.LogCaptureFixture
) -> None:
    async with running(settings) as api:
        for _ in range(3):
            await api.get("//health/live")
    records = [record for record in log.records if record.name == "service.access"]
    assert len([line for record in records for line in record.__dict__["requests"]]) == 3


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/users/me", "/api/v1/users/me", 401),
        ("GET", "/referral-code/nobody@example.com", "/api/v1/referral-code/{email}", 404),
        ("POST", "/auth/login", "/api/v1/auth/login", 400),
        ("GET", "//nobody@example.com", "none", 404),
        ("PATCH", "/users/me", "none", 405),
        ("GET", "//health/live", "/health/live", 200),
        ("GET", "//docs", "/docs", 200),
    ],
)
async def test_so_is_one_that_is_refused_or_nobodys(
    api: Api, log: pytest.LogCaptureFixture, method: str, path: str, route: str, status: int
) -> None:
    log.clear()
    await api.call(method, path)
    [line] = access_lines(api, log)
    assert (line["method"], line["route"], line["status"]) == (method, route, status)
    assert "user_id" not in line


async def test_what_is_no_http_is_one_line_too(api: Api, log: pytest.LogCaptureFixture) -> None:
    log.clear()
    answer = await send(api, b"Good morning, nobody@example.com\r\n\r\n")
    lines = [record for record in log.records if record.name.startswith("service.api")]
    [line] = [json.loads(JsonFormatter().format(record)) for record in lines]
    assert line["level"] == "info"
    assert line["request_id"] == answer.headers["X-Request-Id"]
    assert "exception" not in line
    assert "nobody" not in str(line)


async def test_who_did_what_to_an_account_is_told(
    api: Api, anna: Person, admin: Person, log: pytest.LogCaptureFixture
) -> None:
    log.clear()
    for disabled in (True, False):
        await api.patch(f"/admin/users/{anna.user_id}", {"disabled": disabled}, by=admin)
    told = [
        record
        for record in log.records
        if record.name == "service.security" and record.getMessage() != "session.ended"
    ]
    assert [record.getMessage() for record in told] == ["account.disabled", "account.enabled"]
    for record in told:
        about = vars(record)
        assert about["account"] == api.app[SERVICES].security_events.account_hash(
            UUID(anna.user_id)
        )
        assert about["reason"] == "admin"


async def story(api: Api) -> set[str]:
    """Do everything once, some of it wrong; return what no log line may hold."""
    anna = await api.new_person("anna.o'neil+x@example.com")
    code = await api.new_code(anna, code="ANNA-SECRET")
    await api.register("bert@example.com", referral_code=code)
    await api.register("bert@example.com", referral_code=code)
    await api.register("bert@", password=PASSWORD)
    await api.register("carl@example.com", password="pässwört, oh!", referral_code="NO-SUCH")
    await api.log_in("bert@example.com", "wrong password")
    await api.log_in("nobody@example.com", "wrong password")
    await api.get(f"/referral-code/{anna.email}")
    await api.get("/referral-code/nobody@example.com")
    await api.get(f"//nope/{anna.email}?token={anna.access_token}")
    refreshed = await api.post("/auth/refresh", {"refresh_token": anna.refresh_token})
    tokens = refreshed.json()
    await api.post(
        "/auth/password/change",
        {"current_password": PASSWORD, "new_password": NEW_PASSWORD},
        by=tokens["access_token"],
    )
    await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})
    await api.post("/auth/refresh", {"refresh_token": anna.refresh_token})  # ends the session
    await api.get("/users/me", by=tokens["access_token"])
    bert = await api.signed_in("bert@example.com")
    await api.post(
        "/referral-code",
        {"expires_in_days": 1},
        by=bert,
        headers={"Idempotency-Key": "a-key-of-bert", "User-Agent": "bert@example.com"},
    )
    await api.delete("/users/me", {"password": PASSWORD}, by=bert)
    return {
        "o'neil",
        "bert@",
        "carl@",
        "nobody@",
        PASSWORD,
        NEW_PASSWORD,
        "pässwört",
        json.dumps("pässwört")[1:-1],
        "wrong password",
        anna.access_token,
        anna.access_token.rpartition(".")[2],
        anna.refresh_token,
        tokens["access_token"],
        tokens["refresh_token"],
        bert.refresh_token,
        "argon2",
        code,
    }


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
async def test_no_line_holds_a_secret_or_an_email(
    api: Api, log: pytest.LogCaptureFixture, formatter: logging.Formatter
) -> None:
    secrets = await story(api)
    api.app[ACCESS_LOG].flush()
    lines = "\n".join(map(formatter.format, service_records(log)))
    assert "refresh_token.reused" in lines
    assert "account.erased" in lines
    assert lines.count("/api/v1/auth/register") >= 5
    for secret in secrets:
        assert secret not in lines


def service_records(log: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the records that have been logged, but for those of the test's own client."""
    return [record for record in log.records if not record.name.startswith("aiohttp.client")]


@pytest.mark.parametrize(
    "sabotage",
    [
        # PostgreSQL quotes the row that it refuses, and the key that it has already.
        "ALTER TABLE users ADD CONSTRAINT nobody_knows CHECK (length(email) < 5) NOT VALID",
        "CREATE UNIQUE INDEX nobody_knows ON users (replace(email_key, 'anton', 'anna'))",
        "ALTER TABLE users RENAME COLUMN email_key TO email_kee",
    ],
)
async def test_neither_does_the_traceback_of_a_failure(
    own_database: Settings, log: pytest.LogCaptureFixture, sabotage: str
) -> None:
    async with running(replace(own_database, redis_url="redis://127.0.0.1:1")) as api:
        await api.register("anna@example.com")
        with psycopg.connect(own_database.database_url) as connection:
            connection.execute(sabotage)
        answer = await api.register("anton@example.com")
        assert answer.status == 500
    for formatter in (JsonFormatter(), TextFormatter()):
        lines = "\n".join(map(formatter.format, service_records(log)))
        assert "Traceback" in lines
        for secret in ("anna@", "anton@", "argon2", PASSWORD):
            assert secret not in lines


async def test_that_redis_goes_and_comes_is_told_once(
    settings: Settings, database: asyncpg.Connection, log: pytest.LogCaptureFixture
) -> None:
    async with running(replace(settings, redis_url="redis://127.0.0.1:1")) as api:
        for _ in range(5):
            await api.get("/referral-code/nobody@example.com")
    warnings = [record.getMessage() for record in log.records if record.levelname == "WARNING"]
    assert len([line for line in warnings if "Cache disabled" in line]) == 1
