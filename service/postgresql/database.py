"""Transactions on pooled connections, and the only place where they begin and end."""

import asyncio
import functools
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final, ParamSpec, TypeVar

import asyncpg

from service.domain.errors import DatabaseUnavailable, MigrationsPending, Overloaded, Unavailable
from service.domain.webhooks import Announcement
from service.postgresql.hosts import WrongEncoding, open_connection
from service.postgresql.migration_files import names_of_migrations
from service.postgresql.pool import WAIT_SECONDS, Connections, QueueFull
from service.postgresql.urls import parse_database_url
from service.repositories.account_changes import AccountChangeRepository
from service.repositories.authorization_codes import AuthorizationCodeRepository
from service.repositories.balances import BalanceRepository
from service.repositories.claims import ClaimRepository
from service.repositories.confirmations import ConfirmationRepository
from service.repositories.connection import Connection
from service.repositories.decisions import DecisionRepository
from service.repositories.differences import DifferenceRepository
from service.repositories.enrichments import EnrichmentRepository
from service.repositories.events import EventRepository
from service.repositories.exports import ExportRepository
from service.repositories.idempotency_keys import IdempotencyKeyRepository
from service.repositories.identities import IdentityRepository
from service.repositories.jobs import JobRepository
from service.repositories.mail_tokens import MailTokenRepository
from service.repositories.mailboxes import MailboxRepository
from service.repositories.migrations import MigrationRepository
from service.repositories.oauth_clients import OAuthClientRepository
from service.repositories.outdated import OutdatedRepository
from service.repositories.participant_codes import ParticipantCodeRepository
from service.repositories.participants import ParticipantRepository
from service.repositories.personal_data import PersonalDataRepository
from service.repositories.programmes import ProgrammeRepository
from service.repositories.referral_code_uses import ReferralCodeUseRepository
from service.repositories.referral_codes import ReferralCodeRepository
from service.repositories.referrals import ReferralRepository
from service.repositories.reward_counts import RewardCountRepository
from service.repositories.rewards import RewardRepository
from service.repositories.security_events import SecurityEventRepository
from service.repositories.sessions import SessionRepository
from service.repositories.sign_ins import SignInRepository
from service.repositories.signals import SignalRepository
from service.repositories.standings import StandingRepository
from service.repositories.transfers import TransferRepository
from service.repositories.users import UserRepository
from service.repositories.webhook_attempts import WebhookAttemptRepository
from service.repositories.webhook_deliveries import WebhookDeliveryRepository
from service.repositories.webhook_endpoints import WebhookEndpointRepository
from service.repositories.webhook_messages import WebhookMessageRepository
from service.telemetry.metrics import REPLICA_READS

TRIES: Final = 4
REPLICA_SECONDS: Final = 0.5
"""How long the replica may take for a list before the primary is asked."""
REPLICA_RESTS_SECONDS: Final = 2.0
"""How long the replica is left alone after it was away or behind."""
REPLAY_PAUSES: Final = (0.002, 0.005, 0.01, 0.0)
"""Seconds between checks whether the replica has caught up: it is mostly a millisecond behind."""
log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

# A commit is answered once it is flushed (unless synchronous_commit is off). What was written but
# not flushed is no commit: it may be hint bits, which nobody flushes for a while.
_WRITTEN: Final = "SELECT pg_current_wal_flush_lsn()::text"

# False on a server that is not a standby, or is no longer one.
_HAS_REPLAYED: Final = """
    SELECT pg_is_in_recovery() AND pg_last_wal_replay_lsn() >= $1::text::pg_lsn
"""

# The connection was cut, or abandoned: a statement may still be running on it.
_CUT_OFF: Final = (OSError, asyncpg.InterfaceError)  # TimeoutError is an OSError

# The connection leads nowhere, or to a demoted primary, and so may the others.
_GONE: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InternalClientError,  # cut in the middle of an exchange
)

# What a statement raises on a schema older than the code.
_OUTDATED: Final = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
    asyncpg.InvalidColumnReferenceError,  # ON CONFLICT without its unique index
)


class TryAgain(Exception):
    """The transaction lost to another, or found its premise changed: `retried` runs it again."""


class Repositories:
    """All repositories, on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._callbacks: list[Callable[[], Awaitable[None] | None]] = []
        self._last: list[Callable[[], Awaitable[None]]] = []
        self.announcements: list[Announcement] = []
        """What the transaction tells companies once it commits."""
        self.account_changes = AccountChangeRepository(connection)
        self.authorization_codes = AuthorizationCodeRepository(connection)
        self.balances = BalanceRepository(connection)
        self.claims = ClaimRepository(connection)
        self.confirmations = ConfirmationRepository(connection)
        self.decisions = DecisionRepository(connection)
        self.differences = DifferenceRepository(connection)
        self.enrichments = EnrichmentRepository(connection)
        self.events = EventRepository(connection)
        self.exports = ExportRepository(connection)
        self.idempotency_keys = IdempotencyKeyRepository(connection)
        self.identities = IdentityRepository(connection)
        self.jobs = JobRepository(connection)
        self.mail_tokens = MailTokenRepository(connection)
        self.mailboxes = MailboxRepository(connection)
        self.oauth_clients = OAuthClientRepository(connection)
        self.outdated = OutdatedRepository(connection)
        self.participant_codes = ParticipantCodeRepository(connection)
        self.participants = ParticipantRepository(connection)
        self.personal_data = PersonalDataRepository(connection)
        self.programmes = ProgrammeRepository(connection)
        self.referral_code_uses = ReferralCodeUseRepository(connection)
        self.referral_codes = ReferralCodeRepository(connection)
        self.referrals = ReferralRepository(connection)
        self.reward_counts = RewardCountRepository(connection)
        self.rewards = RewardRepository(connection)
        self.security_events = SecurityEventRepository(connection)
        self.sessions = SessionRepository(connection)
        self.sign_ins = SignInRepository(connection)
        self.signals = SignalRepository(connection)
        self.standings = StandingRepository(connection)
        self.transfers = TransferRepository(connection)
        self.users = UserRepository(connection)
        self.webhook_attempts = WebhookAttemptRepository(connection)
        self.webhook_deliveries = WebhookDeliveryRepository(connection)
        self.webhook_endpoints = WebhookEndpointRepository(connection)
        self.webhook_messages = WebhookMessageRepository(connection)

    def after_commit(self, callback: Callable[[], Awaitable[None] | None]) -> None:
        """Call `callback` after the commit; never if the transaction is rolled back.

        If it returns an awaitable, that is awaited before the caller of the transaction goes on.
        """
        self._callbacks.append(callback)

    def before_commit(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call `callback` last in the transaction; not if what called this is undone."""
        self._last.append(callback)

    async def finish(self) -> None:
        for callback in self._last:
            await callback()

    async def committed(self) -> None:
        for callback in self._callbacks:
            if (awaitable := callback()) is not None:
                await awaitable

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Begin a part of the transaction that can be undone alone."""
        known, announced = len(self._last), len(self.announcements)
        try:
            async with self._connection.transaction():
                yield
        except BaseException:
            del self._last[known:], self.announcements[announced:]
            raise


class Database:
    """The service's way to PostgreSQL.

    Everything raises DatabaseUnavailable where PostgreSQL cannot be reached in time, Overloaded
    where too many wait for it, and TryAgain where a transaction lost to another.
    """

    def __init__(self, connections: Connections, replica: "Database | None" = None) -> None:
        self._connections = connections
        self._replica = replica
        self._replica_rests_until = 0.0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Repositories]:
        """Commit when the block ends; roll back when it raises."""
        async with self._connection() as connection, connection.transaction():
            repositories = Repositories(connection)
            try:
                yield repositories
                await repositories.finish()
            except TimeoutError:
                connection.terminate()  # or the rollback would wait for the server, too
                raise
        await repositories.committed()

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[Repositories]:
        """Commit each statement of the block by itself."""
        async with self._connection() as connection:
            repositories = Repositories(connection)
            yield repositories
            await repositories.finish()
        await repositories.committed()

    async def read(self, read: Callable[[Repositories], Awaitable[T]]) -> T:
        """Return what `read` returns."""
        async with self.autocommit() as repositories:
            return await read(repositories)

    async def from_standby(self, read: Callable[[Repositories], Awaitable[T]]) -> T:
        """Return what `read` returns, from the replica if it is as new as the primary.

        That is, if it has all that the primary had committed when the call began. `read` may be
        called twice.
        """
        if self._replica is not None and time.monotonic() >= self._replica_rests_until:
            result = "away"
            try:
                async with asyncio.timeout(REPLICA_SECONDS):
                    async with self._connection() as connection:
                        written = await connection.fetchval(_WRITTEN)
                    async with self._replica._connection() as connection:  # noqa: SLF001
                        if await _has_replayed(connection, written):
                            found = await read(Repositories(connection))
                            REPLICA_READS.labels("read").inc()
                            return found
                        result = "behind"
            except (Unavailable, TryAgain, TimeoutError) as error:
                log.warning("the replica is not used for now: %r", error.__cause__ or error)
            REPLICA_READS.labels(result).inc()
            self._replica_rests_until = time.monotonic() + REPLICA_RESTS_SECONDS
        return await self.read(read)

    def check_queue(self) -> None:
        """Raise Overloaded if more wait for PostgreSQL than can be served."""
        with _errors_translated():
            self._connections.check_queue()

    async def check_schema(self) -> None:
        """Raise DatabaseUnavailable if PostgreSQL does not answer, or MigrationsPending.

        Unknown migrations belong to a newer release, whose schema this one can live with.
        """
        async with self._connection(skip_check=True) as connection:
            missing = await missing_migrations(connection)
        if missing:
            names = ", ".join(missing)
            raise MigrationsPending(f"Run `python -m service migrate`; missing: {names}.")

    @property
    def connections(self) -> dict[str, int]:
        """How many connections are in use, idle and allowed."""
        return self._connections.counts

    @asynccontextmanager
    async def _connection(self, *, skip_check: bool = False) -> AsyncIterator[Connection]:
        with _errors_translated():
            try:
                connection = await self._connections.acquire(skip_check=skip_check)
            except (asyncpg.PostgresError, WrongEncoding) as error:  # whatever the reason is
                raise DatabaseUnavailable from error
            clean = True
            try:
                yield connection
            except BaseException as error:
                clean = isinstance(error, Exception) and not isinstance(error, _CUT_OFF)
                if isinstance(error, _GONE):
                    self._connections.expire()
                if isinstance(error, _OUTDATED) and await missing_migrations(connection):
                    log.warning("the schema is older than this release: %s", error)
                    raise MigrationsPending from error
                raise
            finally:
                self._connections.release(connection, clean=clean)


async def missing_migrations(connection: Connection) -> list[str]:
    """Return which of this release's migrations are not applied, in their order."""
    names = names_of_migrations()
    try:
        applied = await MigrationRepository(connection).find_applied(names)
    except asyncpg.UndefinedTableError:  # none ever was
        applied = set()
    return [name for name in names if name not in applied]


async def _has_replayed(replica: Connection, written: str) -> bool:
    """Return whether the replica has everything up to there, now or a few milliseconds later."""
    for pause in REPLAY_PAUSES:
        if await replica.fetchval(_HAS_REPLAYED, written):
            return True
        await asyncio.sleep(pause)
    return False


@contextmanager
def _errors_translated() -> Iterator[None]:
    """Tell a transaction worth another try, and a database that is away, from a bug."""
    try:
        yield
    except QueueFull as error:
        raise Overloaded from error
    except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError) as error:
        raise TryAgain from error
    except (
        *_GONE,
        asyncpg.QueryCanceledError,
        asyncpg.InsufficientResourcesError,
        asyncpg.InsufficientPrivilegeError,  # the role has lost a right
    ) as error:
        raise DatabaseUnavailable from error
    except asyncpg.InterfaceError as error:
        if isinstance(error, ValueError):  # an argument of the wrong type: a bug of ours
            raise
        raise DatabaseUnavailable from error  # the connection was closed under us


def retried(work: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Call `work` again when it raises TryAgain, a few times.

    Raises DatabaseUnavailable if it does so every time.
    """

    @functools.wraps(work)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(TRIES):
            try:
                return await work(*args, **kwargs)
            except TryAgain as conflict:
                last = conflict
                await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311
        raise DatabaseUnavailable from last

    return call


@asynccontextmanager
async def connect(
    url: str, size: int, prepared_statements: bool = True, replica_url: str | None = None
) -> AsyncIterator[Database]:
    """Yield the database at `url`, with at most `size` connections, and as many to its replica.

    None is opened yet: the service starts while PostgreSQL is down, and says what is wrong.
    """
    async with AsyncExitStack() as stack:

        async def open_pool(url: str, wait_seconds: float) -> Connections:
            parsed = parse_database_url(url)
            connections = Connections(
                lambda: open_connection(parsed, prepared_statements=prepared_statements),
                min(size, parsed.connection_limit or size),
                wait_seconds,
            )
            return await stack.enter_async_context(connections)

        replica = None
        if replica_url is not None:
            # The other half is for terminating a connection that hangs.
            replica = Database(await open_pool(replica_url, REPLICA_SECONDS / 2))
        yield Database(await open_pool(url, WAIT_SECONDS), replica)
