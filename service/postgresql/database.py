"""Where connections come from, and the only place where transactions begin and end."""

import asyncio
import functools
import logging
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import Any, Final, ParamSpec, TypeVar

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from asyncpg.exceptions import TargetServerAttributeNotMatched

from service.domain.errors import (
    DatabaseUnavailable,
    MigrationsPending,
    Overloaded,
    Unavailable,
)
from service.postgresql.migration_files import names_of_migrations
from service.postgresql.pool import WAIT_SECONDS, Connections, QueueFull
from service.postgresql.urls import STANDBY_KINDS, DatabaseUrl, Host, parse_database_url
from service.repositories.account_changes import AccountChangeRepository
from service.repositories.authorization_codes import AuthorizationCodeRepository
from service.repositories.claims import ClaimRepository
from service.repositories.confirmations import ConfirmationRepository
from service.repositories.connection import Connection
from service.repositories.enrichments import EnrichmentRepository
from service.repositories.idempotency_keys import IdempotencyKeyRepository
from service.repositories.identities import IdentityRepository
from service.repositories.jobs import JobRepository
from service.repositories.mail_tokens import MailTokenRepository
from service.repositories.mailboxes import MailboxRepository
from service.repositories.migrations import MigrationRepository
from service.repositories.oauth_clients import OAuthClientRepository
from service.repositories.outdated import OutdatedRepository
from service.repositories.personal_data import PersonalDataRepository
from service.repositories.referral_code_uses import ReferralCodeUseRepository
from service.repositories.referral_codes import ReferralCodeRepository
from service.repositories.referrals import ReferralRepository
from service.repositories.security_events import SecurityEventRepository
from service.repositories.sessions import SessionRepository
from service.repositories.sign_ins import SignInRepository
from service.repositories.users import UserRepository
from service.telemetry.metrics import REPLICA_READS

CONNECT_SECONDS: Final = 2.0
STATEMENT_SECONDS: Final = 3.0
"""Longer than the second after which PostgreSQL looks for a deadlock, which is then tried again.
A server that hangs is given up sooner (connections.py)."""
LIMITS: Final = {
    # Of a process that is suspended, or cut off, amid a transaction: others wait for its locks.
    "idle_in_transaction_session_timeout": "5s",
    # Of a machine that is gone without a word: its connections count against the most there are.
    "tcp_keepalives_idle": "30s",
    "tcp_keepalives_interval": "10s",
    "tcp_keepalives_count": "3",
}
"""What PostgreSQL is to do by itself where nobody can tell it any more."""
TRIES: Final = 4
_CUT_OFF: Final = (OSError, asyncpg.InterfaceError)  # TimeoutError is an OSError
PREPARED_STATEMENTS: Final = 250
"""How many each connection keeps: all that the service has."""
REPLICA_SECONDS: Final = 0.5
"""How long the replica may take for a list before the primary is asked."""
REPLICA_RESTS_SECONDS: Final = 2.0
"""How long the replica is left alone once it was away, or behind."""
REPLAY_PAUSES: Final = (0.002, 0.005, 0.01, 0.0)
"""Seconds between looks whether the replica has caught up: mostly it is a millisecond behind."""
log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

# A commit is answered when it is flushed (unless synchronous_commit is off). What is written behind
# that is no commit: hint bits say, which nobody flushes for a while.
_WRITTEN: Final = "SELECT pg_current_wal_flush_lsn()::text"

# False on a server that is no standby, or is one no longer.
_HAS_REPLAYED: Final = """
    SELECT pg_is_in_recovery() AND pg_last_wal_replay_lsn() >= $1::text::pg_lsn
"""

_PERMANENT_STATES: Final = (
    "0A",  # a feature of the URL that the server lacks
    "22023",  # a value that a setting in `options` cannot have
    "28",  # the role, the password, pg_hba.conf
    "3D",  # the database
    "42",  # no right to connect; a setting in `options` that does not exist
    "55P02",  # a setting in `options` that cannot be set
)
"""The states (SQLSTATE) in which a connection is refused for good, as they begin."""
_PERMANENT_WORDS: Final = ("no such database", "no such user", "unsupported startup parameter")
"""Those of PgBouncer."""

_PRIMARY: Final = "SELECT WHERE NOT pg_is_in_recovery()"
_STANDBYS: Final = "SELECT WHERE pg_is_in_recovery()"

# What an operation raises when its connection leads nowhere, or to a primary that was demoted:
# then the other connections may do so too.
_GONE: Final = (
    OSError,  # TimeoutError is one: a machine that is gone does not say so
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InternalClientError,
)

# What a statement raises on a schema that is older than the code.
_OUTDATED: Final = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
    asyncpg.InvalidColumnReferenceError,  # ON CONFLICT without its unique index
)


class Repositories:
    """All repositories, on one connection. Each is made where it is used: mostly that is one."""

    __slots__ = ("_callbacks", "_connection")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._callbacks: list[Callable[[], Awaitable[None] | None]] = []

    def after_commit(self, callback: Callable[[], Awaitable[None] | None]) -> None:
        """Call `callback` when what was done has been committed; never if it was rolled back.

        If it returns an awaitable, that is awaited before the caller of the transaction goes on.
        """
        self._callbacks.append(callback)

    async def committed(self) -> None:
        for callback in self._callbacks:
            if (awaitable := callback()) is not None:
                await awaitable

    def savepoint(self) -> AbstractAsyncContextManager[object]:
        """Begin a part of the transaction that can be undone alone."""
        return self._connection.transaction()

    @property
    def account_changes(self) -> AccountChangeRepository:
        return AccountChangeRepository(self._connection)

    @property
    def authorization_codes(self) -> AuthorizationCodeRepository:
        return AuthorizationCodeRepository(self._connection)

    @property
    def claims(self) -> ClaimRepository:
        return ClaimRepository(self._connection)

    @property
    def confirmations(self) -> ConfirmationRepository:
        return ConfirmationRepository(self._connection)

    @property
    def enrichments(self) -> EnrichmentRepository:
        return EnrichmentRepository(self._connection)

    @property
    def idempotency_keys(self) -> IdempotencyKeyRepository:
        return IdempotencyKeyRepository(self._connection)

    @property
    def identities(self) -> IdentityRepository:
        return IdentityRepository(self._connection)

    @property
    def jobs(self) -> JobRepository:
        return JobRepository(self._connection)

    @property
    def mail_tokens(self) -> MailTokenRepository:
        return MailTokenRepository(self._connection)

    @property
    def mailboxes(self) -> MailboxRepository:
        return MailboxRepository(self._connection)

    @property
    def oauth_clients(self) -> OAuthClientRepository:
        return OAuthClientRepository(self._connection)

    @property
    def outdated(self) -> OutdatedRepository:
        return OutdatedRepository(self._connection)

    @property
    def personal_data(self) -> PersonalDataRepository:
        return PersonalDataRepository(self._connection)

    @property
    def referral_code_uses(self) -> ReferralCodeUseRepository:
        return ReferralCodeUseRepository(self._connection)

    @property
    def referral_codes(self) -> ReferralCodeRepository:
        return ReferralCodeRepository(self._connection)

    @property
    def referrals(self) -> ReferralRepository:
        return ReferralRepository(self._connection)

    @property
    def security_events(self) -> SecurityEventRepository:
        return SecurityEventRepository(self._connection)

    @property
    def sessions(self) -> SessionRepository:
        return SessionRepository(self._connection)

    @property
    def sign_ins(self) -> SignInRepository:
        return SignInRepository(self._connection)

    @property
    def users(self) -> UserRepository:
        return UserRepository(self._connection)


class WrongEncoding(Exception):
    """The database has another encoding than UTF8, which cannot hold every text."""


class TransactionConflict(Exception):
    """PostgreSQL gave this transaction up in favour of another: the same work may go well now."""


class Database:
    """Connections to PostgreSQL.

    Raises DatabaseUnavailable where it cannot be reached in time, and Overloaded where too many
    wait for it.
    """

    def __init__(self, connections: Connections, replica: "Database | None" = None) -> None:
        self._connections = connections
        self._replica = replica
        self._replica_rests_until = 0.0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Repositories]:
        """Commit when the block ends; roll back when it raises."""
        async with self._connection() as connection, connection.transaction():
            with _silence_given_up(connection):  # or the rollback would wait for it too
                repositories = Repositories(connection)
                yield repositories
        await repositories.committed()

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[Repositories]:
        """Run each statement of the block by itself: for reads, which need no transaction."""
        async with self._connection() as connection:
            repositories = Repositories(connection)
            yield repositories
        await repositories.committed()

    async def read(self, read: Callable[[Repositories], Awaitable[T]]) -> T:
        """Return what `read` returns, which runs each statement by itself."""
        async with self.autocommit() as repositories:
            return await read(repositories)

    async def from_standby(self, read: Callable[[Repositories], Awaitable[T]]) -> T:
        """Return what `read` returns: it may be called twice, and with the replica's data.

        These are as new as the primary's: the replica is asked only if it has what the primary
        had written when the call began.
        """
        if self._replica is not None and time.monotonic() >= self._replica_rests_until:
            result = "away"
            try:
                async with asyncio.timeout(REPLICA_SECONDS):
                    written = await self._written()
                    async with self._replica._connection() as connection:  # noqa: SLF001
                        if await _has_replayed(connection, written):
                            found = await read(Repositories(connection))
                            REPLICA_READS.labels("read").inc()
                            return found
                        result = "behind"
            except (Unavailable, TransactionConflict, TimeoutError) as error:
                log.warning("the replica is not used for now: %r", error.__cause__ or error)
            REPLICA_READS.labels(result).inc()
            self._replica_rests_until = time.monotonic() + REPLICA_RESTS_SECONDS
        return await self.read(read)

    async def _written(self) -> str:
        """Return how far the primary's log goes."""
        async with self._connection() as connection:
            written: str = await connection.fetchval(_WRITTEN)
            return written

    def check_queue(self) -> None:
        """Raise Overloaded if more wait for PostgreSQL than can be served."""
        with _failures_told():
            self._connections.check_queue()

    async def check_schema(self) -> None:
        """Raise DatabaseUnavailable if PostgreSQL does not answer, or MigrationsPending.

        Migrations that this release does not know are of a newer one, which it can live with.
        """
        async with self._connection(however_many_wait=True) as connection:
            missing = await missing_migrations(connection)
        if missing:
            names = ", ".join(missing)
            raise MigrationsPending(f"Run `python -m service migrate`; missing: {names}.")

    @property
    def connections(self) -> dict[str, int]:
        """How many connections are in use, idle and allowed."""
        connections = self._connections
        in_use = connections.size - connections.idle
        return {"in_use": in_use, "idle": connections.idle, "limit": connections.limit}

    @asynccontextmanager
    async def _connection(self, *, however_many_wait: bool = False) -> AsyncIterator[Connection]:
        with _failures_told():
            try:
                connection = await self._connections.acquire(however_many_wait=however_many_wait)
            except (asyncpg.PostgresError, WrongEncoding) as error:  # whatever keeps one out
                raise DatabaseUnavailable from error
            whole = True
            try:
                yield connection
            except BaseException as error:
                # Cancelled, timed out or cut off: a statement may still be under way.
                whole = isinstance(error, Exception) and not isinstance(error, _CUT_OFF)
                if isinstance(error, _GONE):
                    self._connections.expire()
                if isinstance(error, _OUTDATED) and await missing_migrations(connection):
                    log.warning("the schema is older than this release: %s", error)
                    raise MigrationsPending from error
                raise
            finally:
                self._connections.release(connection, whole=whole)


async def missing_migrations(connection: Connection) -> list[str]:
    """Return which of this release's migrations are not applied, in their order."""
    names = names_of_migrations()
    try:
        applied = await MigrationRepository(connection).find_applied(names)
    except asyncpg.UndefinedTableError:  # none ever was
        applied = set()
    return [name for name in names if name not in applied]


@contextmanager
def _silence_given_up(connection: Connection) -> Iterator[None]:
    """Give up a connection on which a statement took too long; asyncpg cancels the statement."""
    try:
        yield
    except TimeoutError:
        connection.terminate()
        raise


async def _has_replayed(replica: Connection, written: str) -> bool:
    """Return whether the replica has all up to there, or gets it within some milliseconds."""
    for pause in REPLAY_PAUSES:
        if await replica.fetchval(_HAS_REPLAYED, written):
            return True
        await asyncio.sleep(pause)
    return False


@contextmanager
def _failures_told() -> Iterator[None]:
    """Tell a transaction that may be tried again, and a database that is away, from a bug."""
    try:
        yield
    except QueueFull as error:
        raise Overloaded from error
    except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError) as error:
        raise TransactionConflict from error
    except (
        OSError,  # refused, reset, unreachable; TimeoutError is one of them
        asyncpg.PostgresConnectionError,
        asyncpg.AdminShutdownError,
        asyncpg.CrashShutdownError,
        asyncpg.QueryCanceledError,
        asyncpg.ReadOnlySQLTransactionError,  # a standby that was the primary
        asyncpg.InsufficientResourcesError,
        asyncpg.InsufficientPrivilegeError,  # a right was taken from the role
        asyncpg.InternalClientError,  # the connection was cut in the middle of an exchange
    ) as error:
        raise DatabaseUnavailable from error
    except asyncpg.InterfaceError as error:
        if isinstance(error, ValueError):  # an argument of the wrong type: a bug of ours
            raise
        raise DatabaseUnavailable from error  # the connection was closed under us


def retried(method: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Call the method again when its transaction lost to another (40001, 40P01), a few times.

    Raises DatabaseUnavailable if it loses every time.
    """

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(TRIES):
            try:
                return await method(*args, **kwargs)
            except TransactionConflict as conflict:
                last = conflict
                await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311
        raise DatabaseUnavailable from last

    return call


@asynccontextmanager
async def connect(
    url: str, size: int, prepared_statements: bool = True, replica_url: str | None = None
) -> AsyncIterator[Database]:
    """Yield the database at `url`, with at most `size` connections, and as many to its replica.

    Connections are opened when they are needed, so that the service starts, and says what is
    wrong, while PostgreSQL is down.
    """
    async with AsyncExitStack() as stack:

        def open_connections(of: str, wait_seconds: float = WAIT_SECONDS) -> Connections:
            read = parse_database_url(of)
            connections = Connections(
                lambda: open_connection(read, prepared_statements=prepared_statements),
                min(size, read.connection_limit or size),
                wait_seconds,
            )
            stack.push_async_callback(connections.close)
            return connections

        replica = None
        if replica_url is not None:
            # So long it also takes to give up a connection that hangs.
            replica = Database(open_connections(replica_url, REPLICA_SECONDS / 2))
        yield Database(open_connections(url), replica)


async def open_connection(
    url: DatabaseUrl, *, prepared_statements: bool = True
) -> "asyncpg.Connection[asyncpg.Record]":
    """Return the first connection of the kind wanted to any of the hosts that the URL names.

    They are asked at once: one that is gone does not refuse, and asyncpg alone would wait for it
    before it asks the next.
    """
    keeps_statements = prepared_statements and url.prepared_statements
    options = {
        "timeout": min(CONNECT_SECONDS, url.connect_seconds),
        "command_timeout": STATEMENT_SECONDS,
        "statement_cache_size": PREPARED_STATEMENTS if keeps_statements else 0,
    }
    if len(url.hosts) == 1:
        return await _connect_to_one(url, url.hosts[0], **options)
    attempts = [asyncio.create_task(_connect_if_wanted(url, host, **options)) for host in url.hosts]
    chosen = None
    pending = set(attempts)
    try:
        while True:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            chosen = next((attempt for attempt in done if attempt.exception() is None), None)
            if chosen is not None:
                return chosen.result()
            if not pending:
                raise _what_may_pass(attempt.exception() for attempt in attempts)
    finally:
        for attempt in attempts:
            if attempt is not chosen:
                attempt.add_done_callback(_let_go)
                attempt.cancel()


def is_permanent(error: BaseException | None) -> bool:
    """Return whether no waiting mends what keeps a connection from being made."""
    if isinstance(error, asyncpg.ProtocolViolationError):
        # PgBouncer says everything in this state, also that PostgreSQL is away.
        return any(words in str(error) for words in _PERMANENT_WORDS)
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate).startswith(_PERMANENT_STATES)
    if isinstance(error, ssl.SSLError):
        return not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    if isinstance(error, ConnectionError):  # asyncpg has no other class for it
        return "rejected SSL upgrade" in str(error)
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return isinstance(error, ValueError) or "authentication" in str(error)
    return isinstance(error, WrongEncoding)


def _what_may_pass(errors: Iterable[BaseException | None]) -> BaseException:
    """Return the error that speaks for all hosts: with one that may pass, waiting may help."""
    found = [error for error in errors if error is not None]
    return next((error for error in found if not is_permanent(error)), found[0])


async def _connect_to_one(
    url: DatabaseUrl, host: Host, **options: Any
) -> "asyncpg.Connection[asyncpg.Record]":
    target = {**url.for_asyncpg(host), **options}
    named = {**url.server_settings("referrals"), "timezone": "UTC"}
    connection: asyncpg.Connection[asyncpg.Record]
    try:
        connection = await asyncpg.connect(server_settings=named | LIMITS, **target)
    except asyncpg.ProtocolViolationError:  # PgBouncer, which knows no others and has its own
        connection = await asyncpg.connect(server_settings=named, **target)
    encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")
    if encoding != "UTF8":
        connection.terminate()
        raise WrongEncoding(encoding)
    _set_socket_options(connection, url)
    return connection


def _set_socket_options(connection: "asyncpg.Connection[asyncpg.Record]", url: DatabaseUrl) -> None:
    # asyncpg has no parameters for them.
    opened = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # noqa: SLF001
    if opened.family != socket.AF_UNIX:
        for level, name, value in url.socket_options():
            opened.setsockopt(level, name, value)


async def _connect_if_wanted(
    url: DatabaseUrl, host: Host, **options: Any
) -> "asyncpg.Connection[asyncpg.Record]":
    """Connect to the one host; raise TargetServerAttributeNotMatched if it is of another kind.

    The server is asked what it is, because PgBouncer repeats what it was when it first spoke to
    it.
    """
    wanted = _STANDBYS if url.kind_wanted in STANDBY_KINDS else _PRIMARY
    any_kind = SessionAttribute.any
    connection = await _connect_to_one(url, host, target_session_attrs=any_kind, **options)
    is_wanted = False
    try:
        is_wanted = await connection.execute(wanted) == "SELECT 1"
    finally:
        if not is_wanted:
            connection.terminate()
    if not is_wanted:
        raise TargetServerAttributeNotMatched
    return connection


def _let_go(attempt: "asyncio.Task[asyncpg.Connection[asyncpg.Record]]") -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()
