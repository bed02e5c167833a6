"""Opening a connection: to the host of the wanted kind, with the limits that each session has."""

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from asyncpg.exceptions import TargetServerAttributeNotMatched

from service.postgresql.urls import STANDBY_KINDS, DatabaseUrl, Host

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

CONNECT_SECONDS: Final = 2.0
STATEMENT_SECONDS: Final = 3.0
"""Longer than the second after which PostgreSQL looks for a deadlock, whose loser is retried.
A server that hangs is given up sooner (watch.py)."""
PREPARED_STATEMENTS: Final = 400
"""How many each connection keeps: more than the service has."""
LIMITS: Final = {
    # For a process that is suspended, or cut off, within a transaction: others wait for its locks.
    "idle_in_transaction_session_timeout": "5s",
    # For a machine that vanished: its connections count against max_connections.
    "tcp_keepalives_idle": "30s",
    "tcp_keepalives_interval": "10s",
    "tcp_keepalives_count": "3",
}
"""What PostgreSQL does on its own when the service no longer can."""

_PERMANENT_STATES: Final = (
    "0A",  # a feature in the URL that the server lacks
    "22023",  # an invalid value of a setting in `options`
    "28",  # the role, the password, pg_hba.conf
    "3D",  # the database
    "42",  # no right to connect; an unknown setting in `options`
    "55P02",  # a setting in `options` that cannot be set
)
"""What the SQLSTATE of a permanent refusal begins with."""
_PERMANENT_WORDS: Final = ("no such database", "no such user", "unsupported startup parameter")
"""In PgBouncer's permanent refusals, all of which have one SQLSTATE."""

_IS_PRIMARY: Final = "SELECT WHERE NOT pg_is_in_recovery()"
_IS_STANDBY: Final = "SELECT WHERE pg_is_in_recovery()"


class WrongEncoding(Exception):
    """The database's encoding is not UTF8, so it cannot hold every text."""


async def open_connection(url: DatabaseUrl, *, prepared_statements: bool = True) -> "Connection":
    """Return the first connection of the wanted kind to any host in the URL.

    All hosts are asked at once: asyncpg alone would ask one after the other, and one that is
    gone does not refuse.
    """
    keeps_statements = prepared_statements and url.prepared_statements
    options = {
        "timeout": min(CONNECT_SECONDS, url.connect_seconds),
        "command_timeout": STATEMENT_SECONDS,
        "statement_cache_size": PREPARED_STATEMENTS if keeps_statements else 0,
    }
    if len(url.hosts) == 1:
        return await _connect(url, url.hosts[0], **options)
    attempts = {asyncio.create_task(_connect_if_wanted(url, host, **options)) for host in url.hosts}
    pending = set(attempts)
    errors: list[BaseException] = []
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                if (error := attempt.exception()) is None:
                    attempts.discard(attempt)
                    return attempt.result()
                errors.append(error)
        # If one of them may pass, waiting may help.
        raise next((error for error in errors if not is_permanent(error)), errors[0])
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_discard)
            attempt.cancel()


def is_permanent(error: BaseException) -> bool:
    """Return whether connecting will fail for this reason however long one waits."""
    if isinstance(error, asyncpg.ProtocolViolationError):  # PgBouncer's only one
        return any(words in str(error) for words in _PERMANENT_WORDS)
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate).startswith(_PERMANENT_STATES)
    if isinstance(error, ssl.SSLError):
        return not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    if isinstance(error, ConnectionError):  # asyncpg has no class of its own for it
        return "rejected SSL upgrade" in str(error)
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return isinstance(error, ValueError) or "authentication" in str(error)
    return isinstance(error, WrongEncoding)


async def _connect_if_wanted(url: DatabaseUrl, host: Host, **options: Any) -> "Connection":
    """Connect to the host; raise TargetServerAttributeNotMatched if it is of another kind.

    asyncpg would believe what PgBouncer repeats: what the server was when they first met.
    """
    any_kind = SessionAttribute.any
    connection = await _connect(url, host, target_session_attrs=any_kind, **options)
    is_wanted = False
    try:
        wanted = _IS_STANDBY if url.kind_wanted in STANDBY_KINDS else _IS_PRIMARY
        is_wanted = await connection.execute(wanted) == "SELECT 1"
    finally:
        if not is_wanted:
            connection.terminate()
    if not is_wanted:
        raise TargetServerAttributeNotMatched
    return connection


async def _connect(url: DatabaseUrl, host: Host, **options: Any) -> "Connection":
    target = {**url.for_asyncpg(host), **options}
    settings = {**url.server_settings("referrals"), "timezone": "UTC"}
    connection: Connection
    try:
        connection = await asyncpg.connect(server_settings=settings | LIMITS, **target)
    except asyncpg.ProtocolViolationError:  # PgBouncer refuses LIMITS, and has its own
        connection = await asyncpg.connect(server_settings=settings, **target)
    encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")
    if encoding != "UTF8":
        connection.terminate()
        raise WrongEncoding(encoding)
    # asyncpg has no parameters for the socket's options.
    opened = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # noqa: SLF001
    if opened.family != socket.AF_UNIX:
        for level, name, value in url.socket_options():
            opened.setsockopt(level, name, value)
    return connection


def _discard(attempt: "asyncio.Task[Connection]") -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()
