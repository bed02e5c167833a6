"""The pool of connections, and the only place where transactions begin and end."""

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final, ParamSpec, Self, TypeVar

import asyncpg

from service.domain.errors import DatabaseUnavailable
from service.repositories.authorization_codes import AuthorizationCodeRepository
from service.repositories.connection import Connection
from service.repositories.idempotency_keys import IdempotencyKeyRepository
from service.repositories.identities import IdentityRepository
from service.repositories.jobs import JobRepository
from service.repositories.oauth_clients import OAuthClientRepository
from service.repositories.referral_codes import ReferralCodeRepository
from service.repositories.referrals import ReferralRepository
from service.repositories.sessions import SessionRepository
from service.repositories.sign_ins import SignInRepository
from service.repositories.users import UserRepository

CONNECT_SECONDS: Final = 2.0
STATEMENT_SECONDS: Final = 3.0
"""Longer than the second after which PostgreSQL looks for a deadlock, which is then tried again."""
WAIT_FOR_CONNECTION_SECONDS: Final = 1.0
TRIES: Final = 4
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Repositories:
    """All repositories, bound to one connection."""

    authorization_codes: AuthorizationCodeRepository
    idempotency_keys: IdempotencyKeyRepository
    identities: IdentityRepository
    jobs: JobRepository
    oauth_clients: OAuthClientRepository
    referral_codes: ReferralCodeRepository
    referrals: ReferralRepository
    sessions: SessionRepository
    sign_ins: SignInRepository
    users: UserRepository

    @classmethod
    def on(cls, connection: Connection) -> Self:
        return cls(
            AuthorizationCodeRepository(connection),
            IdempotencyKeyRepository(connection),
            IdentityRepository(connection),
            JobRepository(connection),
            OAuthClientRepository(connection),
            ReferralCodeRepository(connection),
            ReferralRepository(connection),
            SessionRepository(connection),
            SignInRepository(connection),
            UserRepository(connection),
        )


class TransactionConflict(Exception):
    """PostgreSQL gave this transaction up in favour of another: the same work may go well now."""


class Database:
    """Connections to PostgreSQL. Raises DatabaseUnavailable where it cannot be reached in time."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

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

    async def ping(self) -> None:
        """Raise DatabaseUnavailable unless PostgreSQL answers."""
        async with self._connection() as connection:
            await connection.execute("SELECT 1")

    @property
    def connections(self) -> dict[str, int]:
        """How many connections are in use, idle and allowed."""
        size, idle = self._pool.get_size(), self._pool.get_idle_size()
        return {"in_use": size - idle, "idle": idle, "limit": self._pool.get_max_size()}

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        with _failures_told():
            async with AsyncExitStack() as stack:
                try:
                    acquired = self._pool.acquire(timeout=WAIT_FOR_CONNECTION_SECONDS)
                    connection = await stack.enter_async_context(acquired)
                except asyncpg.PostgresError as error:  # whatever keeps one from connecting
                    raise DatabaseUnavailable from error
                with _silence_given_up(
                    connection
                ):  # or the pool would wait before it takes it back
                    yield connection


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
    pool = asyncpg.create_pool(
        url,
        min_size=0,
        max_size=size,
        timeout=CONNECT_SECONDS,
        command_timeout=STATEMENT_SECONDS,
        server_settings={"application_name": "referrals", "timezone": "UTC"},
    )
    await pool
    try:
        yield Database(pool)
    finally:
        try:
            async with asyncio.timeout(STATEMENT_SECONDS):
                await pool.close()
        except (TimeoutError, OSError, asyncpg.InterfaceError):
            pool.terminate()
