"""Log lines: JSON for machines, plain text for a terminal, and no secrets."""

import functools
import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal

from service.telemetry.access_log import LoggedRequest

LogFormat = Literal["json", "text", "auto"]
LogLevel = Literal["debug", "info", "warning", "error"]
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# PostgreSQL and libraries quote their input in messages. Each alternative begins where the one
# before has ended: a long text is read once.
_SECRET: Final = re.compile(
    r"(?<=://)[^\s/]*(?=@)"  # user and password of a URL
    r"|(?<![\w.!#$%&'*+/=?^`{|}~-])"  # from the beginning of a word …
    r"[\w.!#$%&'*+/=?^`{|}~-]+(?:@|%40)[\w-]+(?:\.[\w-]+)+"  # … an email address
    r"|eyJ[\w.-]+"  # a JWT
    r"|\$argon2[\w$=,+/]+"
)


def set_up_logging(level: LogLevel, log_format: LogFormat) -> None:
    """Send all log lines of the process to the standard error stream."""
    handler = logging.StreamHandler()
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("yoyo").setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        if requests := getattr(record, "requests", None):
            head = f'"level": "{record.levelname.lower()}", "logger": "{record.name}"'
            return "\n".join([_request_as_json(head, request) for request in requests])
        line = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _redact(record.getMessage()),
            **{name: _redacted(value) for name, value in _extra(record).items()},
        }
        if record.exc_info:
            line["exception"] = _redact(self.formatException(record.exc_info))
        # Redacted first: after JSON's escapes (\\n, \\u00fc) no pattern sees the start of a word.
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """One readable line."""

    def format(self, record: logging.LogRecord) -> str:
        if requests := getattr(record, "requests", None):
            head = f"{record.levelname:<7} {record.name}"
            return "\n".join([_request_as_text(head, request) for request in requests])
        extra = "".join(f" {name}={value}" for name, value in _extra(record).items())
        head = f"{_time(record.created)} {record.levelname:<7} {record.name}"
        line = f"{head}: {record.getMessage()}{extra}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return _redact(line)


# By hand, because there are as many of these lines as requests: json.dumps takes 5 µs more, a tenth
# of a look-up. Nothing in them needs escapes, and only the request id may come from outside.
def _request_as_json(head: str, request: LoggedRequest) -> str:
    at, request_id, method, route, status, seconds, user_id = request
    user = "" if user_id is None else f', "user_id": "{user_id}"'
    return (
        f'{{"time": "{_time(at)}", {head}, "message": "request", '
        f'"request_id": "{_redact_id(request_id)}", "method": "{method}", "route": "{route}", '
        f'"status": {status}, "duration_ms": {seconds * 1000:.2f}{user}}}'
    )


def _request_as_text(head: str, request: LoggedRequest) -> str:
    at, request_id, method, route, status, seconds, user_id = request
    user = "" if user_id is None else f" user_id={user_id}"
    return (
        f"{_time(at)} {head}: request request_id={_redact_id(request_id)} method={method} "
        f"route={route} status={status} duration_ms={seconds * 1000:.2f}{user}"
    )


def _redact_id(request_id: str) -> str:
    """A client may send a token as its request id; nothing else that one can hold is secret."""
    return _redact(request_id) if "eyJ" in request_id else request_id


def _time(at: float) -> str:
    milliseconds = int(at * 1000)
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@functools.lru_cache(2)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD and value is not None
    }


def _redacted(value: Any) -> Any:
    return value if isinstance(value, bool | int | float) else _redact(str(value))


def _redact(line: str) -> str:
    return _SECRET.sub("[redacted]", line)
