"""Where connections come from, and the only place where transactions begin and end."""

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final, ParamSpec, Self, TypeVar

import asyncpg

from service.connections import Connections
from service.domain.errors import DatabaseUnavailable
from service.repositories.authorization_codes import AuthorizationCodeRepository
from service.repositories.connection import Connection
from service.repositories.enrichments import EnrichmentRepository
from service.repositories.idempotency_keys import IdempotencyKeyRepository
from service.repositories.identities import IdentityRepository
from service.repositories.jobs import JobRepository
from service.repositories.mail_tokens import MailTokenRepository
from service.repositories.oauth_clients import OAuthClientRepository
from service.repositories.referral_codes import ReferralCodeRepository
from service.repositories.referrals import ReferralRepository
from service.repositories.sessions import SessionRepository
from service.repositories.sign_ins import SignInRepository
from service.repositories.users import UserRepository

CONNECT_SECONDS: Final = 2.0
STATEMENT_SECONDS: Final = 3.0
"""Longer than the second after which PostgreSQL looks for a deadlock, which is then tried again."""
TRIES: Final = 4
_CUT_OFF: Final = (OSError, asyncpg.InterfaceError)  # TimeoutError is an OSError
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Repositories:
    """All repositories, bound to one connection.

    `savepoint` begins a part of the transaction that can be undone alone.
    """

    authorization_codes: AuthorizationCodeRepository
    enrichments: EnrichmentRepository
    idempotency_keys: IdempotencyKeyRepository
    identities: IdentityRepository
    jobs: JobRepository
    mail_tokens: MailTokenRepository
    oauth_clients: OAuthClientRepository
    referral_codes: ReferralCodeRepository
    referrals: ReferralRepository
    sessions: SessionRepository
    sign_ins: SignInRepository
    users: UserRepository
    savepoint: Callable[[], AbstractAsyncContextManager[object]]

    @classmethod
    def on(cls, connection: Connection) -> Self:
        return cls(
            AuthorizationCodeRepository(connection),
            EnrichmentRepository(connection),
            IdempotencyKeyRepository(connection),
            IdentityRepository(connection),
            JobRepository(connection),
            MailTokenRepository(connection),
            OAuthClientRepository(connection),
            ReferralCodeRepository(connection),
            ReferralRepository(connection),
            SessionRepository(connection),
            SignInRepository(connection),
            UserRepository(connection),
            savepoint=connection.transaction,
        )


class TransactionConflict(Exception):
    """PostgreSQL gave this transaction up in favour of another: the same work may go well now."""


class Database:
    """Connections to PostgreSQL. Raises DatabaseUnavailable where it cannot be reached in time."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Repositories]:
        """Commit when the block ends; roll back when it raises."""
        async with self._connection() as connection, connection.transaction():
            with _silence_given_up(connection):  # or the rollback would wait for it too
                yield Repositories.on(connection)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Repositories]:
        """Run each statement of the block by itself: for reads, which need no transaction."""
        async with self._connection() as connection:
            yield Repositories.on(connection)

    async def has_tables(self) -> bool:
        """Return whether migrations were ever applied; True too where nobody can be asked."""
        try:
            async with self._connection() as connection:
                found: bool = await connection.fetchval("SELECT to_regclass('jobs') IS NOT NULL")
        except DatabaseUnavailable:
            return True  # the service starts without PostgreSQL, and says what is wrong
        return found

    async def ping(self) -> None:
        """Raise DatabaseUnavailable unless PostgreSQL answers."""
        async with self._connection() as connection:
            await connection.execute("SELECT 1")

    @property
    def connections(self) -> dict[str, int]:
        """How many connections are in use, idle and allowed."""
        connections = self._connections
        in_use = connections.size - connections.idle
        return {"in_use": in_use, "idle": connections.idle, "limit": connections.limit}

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        with _failures_told():
            try:
                connection = await self._connections.acquire()
            except asyncpg.PostgresError as error:  # whatever keeps one from connecting
                raise DatabaseUnavailable from error
            whole = True
            try:
                yield connection
            except BaseException as error:
                # Cancelled, timed out or cut off: a statement may still be under way.
                whole = isinstance(error, Exception) and not isinstance(error, _CUT_OFF)
                raise
            finally:
                self._connections.release(connection, whole=whole)


@contextmanager
def _silence_given_up(connection: Connection) -> Iterator[None]:
    """Give up a connection on which a statement took too long; asyncpg cancels the statement."""
    try:
        yield
    except TimeoutError:
        connection.terminate()
        raise


@contextmanager
def _failures_told() -> Iterator[None]:
    """Tell a transaction that may be tried again, and a database that is away, from a bug."""
    try:
        yield
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
async def connect(url: str, size: int) -> AsyncIterator[Database]:
    """Yield the database at `url`, with at most `size` connections.

    Connections are opened when they are needed, so that the service starts, and says what is
    wrong, while PostgreSQL is down.
    """
    connections = Connections(
        lambda: asyncpg.connect(
            url,
            timeout=CONNECT_SECONDS,
            command_timeout=STATEMENT_SECONDS,
            server_settings={"application_name": "referrals", "timezone": "UTC"},
        ),
        size,
    )
    try:
        yield Database(connections)
    finally:
        await connections.close()
