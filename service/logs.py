"""Log lines: JSON for machines, plain for a terminal, and nothing that must stay secret."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final

from service.settings import LogFormat, LogLevel

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# PostgreSQL and libraries quote what they were given in their messages.
# Each alternative begins where the one before has ended, so that a long text is read once.
_SECRET: Final = re.compile(
    r"(?<=://)[^\s/]*(?=@)"  # user and password of a URL
    r"|(?<![\w.!#$%&'*+/=?^`{|}~-])"  # from the beginning of a word …
    r"[\w.!#$%&'*+/=?^`{|}~-]+(?:@|%40)[\w-]+(?:\.[\w-]+)+"  # … an e-mail
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
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _redact(record.getMessage()),
            **{name: _redacted(value) for name, value in _extra(record).items()},
        }
        if record.exc_info:
            line["exception"] = _redact(self.formatException(record.exc_info))
        # Redacted before: behind JSON's escapes (\\n, \\u00fc) no pattern sees a word's beginning.
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """One readable line."""

    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {name}={value}" for name, value in _extra(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {record.getMessage()}{extra}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return _redact(line)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
