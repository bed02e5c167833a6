"""Log lines: whole for machines, readable for people, and silent about secrets."""

import io
import json
import logging
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Never
from uuid import UUID

import pytest

from service.security.access_tokens import AccessTokens
from service.security.signing_keys import SigningKey, SigningKeys
from service.telemetry.logs import JsonFormatter, TextFormatter

ROOT = Path(__file__).parents[2]
FORMATTERS = [JsonFormatter(), TextFormatter()]
JWT = AccessTokens(
    SigningKeys([SigningKey.generate()]), "https://example.com", timedelta(minutes=10)
).issue(
    subject=str(UUID(int=1)),
    client_id="first-party",
    session_id=UUID(int=2),
    scopes=(),
    now=datetime.now(UTC),
)
ARGON2 = "$argon2id$v=19$m=19456,t=2,p=1$AzXnPIeQUoqRUmotRQhhbA$xbN8LVQ0Pa3T7cJ8e1q0Dg6rJ1sYc2o"

# What is logged, and the parts of it that nobody may read.
SECRETS = [
    pytest.param("anna@example.com", ["anna"], id="an e-mail"),
    pytest.param("Anna.Long+tag_1-2%3@sub.example.co", ["Anna", "tag"], id="a long e-mail"),
    pytest.param("fred&wilma@example.com", ["fred", "wilma"], id="an e-mail with &"),
    pytest.param("anna/bert@example.com", ["anna", "bert"], id="an e-mail with /"),
    pytest.param("anna@m\u00fcnchen.de", ["anna"], id="an e-mail with an umlaut"),
    pytest.param("anna@\u043f\u043e\u0447\u0442\u0430.\u0440\u0444", ["anna"], id="Cyrillic"),
    pytest.param("anna@xn--80a1acny.xn--p1ai", ["anna"], id="an e-mail in IDNA"),
    pytest.param("/referral-code/anna%40example.com", ["anna"], id="an e-mail in a path"),
    pytest.param(JWT, JWT.split("."), id="an access token"),
    pytest.param(f"Bearer {JWT}", JWT.split("."), id="an Authorization header"),
    pytest.param(ARGON2, ["AzXnPIeQ", "xbN8LVQ0"], id="a hash"),
    pytest.param("postgresql://me:hunter2@db/referrals", ["hunter2"], id="a URL"),
    pytest.param("postgresql://me:hunter2@db.example.com/x", ["hunter2"], id="a URL like e-mail"),
    pytest.param("redis://:hunter2@cache:6379/0", ["hunter2"], id="a URL without a user"),
    pytest.param("postgresql://me:hunter@2@db/referrals", ["hunter", "2@"], id="@ in a password"),
    pytest.param("postgresql://me:hunter%402@db/x", ["hunter", "402"], id="%40 in a password"),
]


def logged(
    formatter: logging.Formatter,
    message: str,
    *arguments: Any,
    error: Exception | None = None,
    **extra: Any,
) -> str:
    """Return what a logger writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger("service.tests")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]
    logger.info(message, *arguments, extra=extra, exc_info=error)
    return stream.getvalue()


def fail(text: str) -> Never:
    raise ValueError(text)


def fail_twice(text: str) -> Never:
    try:
        fail(text)
    except ValueError as error:
        raise RuntimeError(f"for\n{text}") from error


def assert_silent(line: str, formatter: logging.Formatter, fragments: list[str]) -> None:
    assert [fragment for fragment in fragments if fragment in line] == []
    assert "[redacted]" in line
    if isinstance(formatter, JsonFormatter):
        assert isinstance(json.loads(line), dict), "redacting must not break the JSON"


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize(("secret", "fragments"), SECRETS)
@pytest.mark.parametrize(
    "message",
    [
        pytest.param("%s", id="alone"),
        pytest.param("Key (email_key)=(%s) already exists.", id="in brackets"),
        pytest.param('it was "%s"', id="in quotes"),
        pytest.param("the first line\n%s\tthe second", id="after a newline"),
        pytest.param("\u00e9 %s.", id="after a letter that JSON escapes"),
    ],
)
def test_a_secret_is_not_in_a_message(
    formatter: logging.Formatter, message: str, secret: str, fragments: list[str]
) -> None:
    assert_silent(logged(formatter, message, secret), formatter, fragments)


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize(("secret", "fragments"), SECRETS)
def test_a_secret_is_not_in_an_extra(
    formatter: logging.Formatter, secret: str, fragments: list[str]
) -> None:
    for extra in (secret, [secret], {secret: secret}, ValueError(secret)):
        assert_silent(logged(formatter, "request", about=extra), formatter, fragments)


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize(("secret", "fragments"), SECRETS)
def test_a_secret_is_not_in_a_traceback(
    formatter: logging.Formatter, secret: str, fragments: list[str]
) -> None:
    with pytest.raises(RuntimeError) as caught:
        fail_twice(secret)
    line = logged(formatter, "unhandled error", error=caught.value)
    assert_silent(line, formatter, fragments)
    assert "RuntimeError" in line
    assert "ValueError" in line


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize(
    "text",
    [
        "route /api/v1/referral-code/{email}",
        "http://127.0.0.1:8080/docs",
        "redis://localhost:6379/0",
        "yoyo-migrations==9.0.0",
        "@retried",
        "a @ b",
        "2026-11-21T09:30:00Z",
    ],
)
def test_what_is_no_secret_is_told(formatter: logging.Formatter, text: str) -> None:
    assert text in logged(formatter, "%s", text)


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize("text", ["a", "eyJ", "://", ":", "%40", "a@", "a.", "$argon2", "://:"])
def test_a_long_text_is_redacted_in_a_moment(formatter: logging.Formatter, text: str) -> None:
    """Redacting must not go over it again and again: it holds up every other request."""
    long_text = f"://{30_000 // len(text) * text}"
    started = time.perf_counter()
    logged(formatter, "%s", long_text)
    assert time.perf_counter() - started < 1


def test_a_json_line_has_its_members() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    text = logged(JsonFormatter(), "%s request", "one", status=200, user_id=None, route="/x")
    assert text.count("\n") == 1
    line = json.loads(text)
    assert before <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
    assert line == {
        "level": "info",
        "logger": "service.tests",
        "message": "one request",
        "status": 200,
        "route": "/x",
    }


def test_a_json_line_is_one_line_with_an_exception_too() -> None:
    with pytest.raises(ValueError, match="two") as caught:
        fail("two\nlines")
    text = logged(JsonFormatter(), "failed\nhere", error=caught.value)
    assert text.count("\n") == 1
    line = json.loads(text)
    assert line["message"] == "failed\nhere"
    assert line["exception"].endswith("ValueError: two\nlines")


def test_any_value_can_be_logged_as_json() -> None:
    line = json.loads(logged(JsonFormatter(), "x", user_id=UUID(int=1), raw=b"\xff", text="\ud800"))
    assert line["user_id"] == str(UUID(int=1))
    assert line["raw"] == r"b'\xff'"
    assert line["text"] == "\ud800"


def test_a_text_line_is_for_reading() -> None:
    text = logged(TextFormatter(), "%s request", "one", status=200, user_id=None, route="/x")
    moment, _, rest = text.partition(" ")
    assert datetime.fromisoformat(moment).tzinfo is not None
    assert rest == "INFO    service.tests: one request status=200 route=/x\n"


def test_a_text_line_is_followed_by_the_traceback() -> None:
    with pytest.raises(ValueError, match="a reason") as caught:
        fail("a reason")
    text = logged(TextFormatter(), "failed", error=caught.value)
    first, second, *_, last = text.splitlines()
    assert first.endswith("service.tests: failed")
    assert second == "Traceback (most recent call last):"
    assert last == "ValueError: a reason"


@pytest.mark.parametrize(
    ("level", "log_format", "json_lines", "levels"),
    [
        ("debug", "json", True, ["debug", "info", "warning"]),
        ("warning", "json", True, ["warning"]),
        ("info", "auto", True, ["info", "warning"]),  # a pipe is no terminal
        ("info", "text", False, ["info", "warning"]),
    ],
)
def test_lines_go_to_standard_error_from_the_level_that_was_set(
    level: str, log_format: str, json_lines: bool, levels: list[str]
) -> None:
    script = f"""
import logging
from service.telemetry.logs import set_up_logging
logging.basicConfig()  # what a library may have done before
set_up_logging({level!r}, {log_format!r})
logger = logging.getLogger("one")
logger.debug("word"), logger.info("word"), logger.warning("word")
logging.getLogger("yoyo.migrations").info("chatter")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = ended.stderr.splitlines()
    assert ended.stdout == ""
    if json_lines:
        assert [json.loads(line)["level"] for line in lines] == levels
    else:
        assert [line.split()[1].lower() for line in lines] == levels
