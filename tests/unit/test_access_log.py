"""The access log: every request is written once, soon, and in one go with others."""

import json
import logging
from datetime import datetime

import pytest

from service.telemetry import access_log
from service.telemetry.access_log import MOST_REQUESTS, AccessLog, LoggedRequest
from service.telemetry.logs import JsonFormatter, TextFormatter
from tests.waiting import until

AT = 1795253400.0625


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def add(collected: AccessLog, request_id: str = "id", user_id: str | None = None) -> None:
    collected.add((AT, request_id, "GET", "/api/v1/users/me", 200, 0.00123, user_id))


def lines(log: pytest.LogCaptureFixture, formatter: logging.Formatter) -> list[str]:
    return [line for record in log.records for line in formatter.format(record).splitlines()]


async def test_requests_are_written_together_and_soon(log: pytest.LogCaptureFixture) -> None:
    measured: list[LoggedRequest] = []
    collected = AccessLog(measured.extend)
    for number in range(3):
        add(collected, f"id {number}")
    assert log.records == []
    await until(lambda: log.records)
    assert len(log.records) == 1
    written = [json.loads(line) for line in lines(log, JsonFormatter())]
    assert [line["request_id"] for line in written] == ["id 0", "id 1", "id 2"]
    assert [request_id for _, request_id, *_ in measured] == ["id 0", "id 1", "id 2"]
    add(collected, "id 3")
    await until(lambda: len(lines(log, JsonFormatter())) == 4)


async def test_no_more_are_kept_than_memory_allows(log: pytest.LogCaptureFixture) -> None:
    collected = AccessLog(lambda _: None)
    for _ in range(MOST_REQUESTS + 1):
        add(collected)
    assert len(lines(log, JsonFormatter())) == MOST_REQUESTS + 1
    collected.flush()
    assert len(log.records) == 1, "nothing is written twice, or empty"


async def test_a_line_is_what_any_line_is(log: pytest.LogCaptureFixture) -> None:
    """The lines that are written by hand say what a LogRecord of their own would say."""
    for user_id in (None, "user"):
        about = {"request_id": "id", "method": "GET", "route": "/api/v1/users/me", "status": 200}
        extra = {**about, "duration_ms": 1.23, "user_id": user_id}
        access_log.log.info("request", extra=extra)
        log.records[-1].created = AT
    collected = AccessLog(lambda _: None)
    add(collected)
    add(collected, user_id="user")
    collected.flush()
    single, batch = log.records[:2], log.records[2:]
    for formatter in (JsonFormatter(), TextFormatter()):
        together = [line for record in batch for line in formatter.format(record).splitlines()]
        assert together == [formatter.format(record) for record in single]
    moment = json.loads(JsonFormatter().format(batch[0]).splitlines()[0])["time"]
    assert datetime.fromisoformat(moment).timestamp() == pytest.approx(1795253400.062)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
async def test_a_token_sent_as_a_request_id_is_not_written(
    log: pytest.LogCaptureFixture, formatter: logging.Formatter
) -> None:
    collected = AccessLog(lambda _: None)
    add(collected, "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl")
    collected.flush()
    [line] = lines(log, formatter)
    assert "[redacted]" in line
    assert "eyJ" not in line
