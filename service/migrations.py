"""Applying the migrations in sql/migrations, as `yoyo apply` does, from any number of processes."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri
from yoyo.exceptions import LockTimeout
from yoyo.migrations import default_migration_table

FOLDER: Final = Path(__file__).parent.parent / "sql" / "migrations"
LONGEST_WAIT: Final = timedelta(minutes=5)
_POLL_SECONDS: Final = 0.2
log = logging.getLogger(__name__)

# yoyo keeps its connection open as long as it holds the lock. Where no connection but the
# service's own is older than the lock, whoever took it was killed.
_BREAK_STALE_LOCK: Final = """
    DELETE FROM yoyo_lock l
     WHERE NOT EXISTS (
        SELECT FROM pg_stat_activity a
         WHERE a.datname = current_database()
           AND a.backend_type = 'client backend'
           AND a.application_name <> 'referrals'
           AND a.pid <> pg_backend_pid()
           AND a.backend_start AT TIME ZONE 'UTC' <= l.ctime + interval '1 second'
     )
    RETURNING pid
"""


class MigrationError(Exception):
    """The migrations could not be applied: one sentence for the operator."""


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """yoyo's backend, with a lock that a killed migrator does not keep for good."""

    @contextmanager
    def lock(self, timeout: float = LONGEST_WAIT.total_seconds()) -> Iterator[None]:
        if self._is_locked:
            yield
            return
        with super().lock(timeout):
            yield

    def _insert_lock_row(self, pid: int, timeout: float, poll_interval: float = 0.0) -> None:
        deadline = time.monotonic() + timeout
        while True:
            for (dead,) in self.execute(_BREAK_STALE_LOCK).fetchall():
                log.warning("the migrator %s left its lock behind; broken", dead)
            try:
                super()._insert_lock_row(pid, _POLL_SECONDS)
            except LockTimeout:
                if time.monotonic() > deadline:
                    raise
            else:
                return


def apply_migrations(database_url: str) -> list[str]:
    """Apply what is not applied yet; return the names. Raises MigrationError."""
    _, _, rest = database_url.partition("://")
    url = parse_uri(f"postgresql+psycopg://{rest}")
    migrations = read_migrations(str(FOLDER))
    try:
        with _Backend(url, default_migration_table) as backend:
            backend.init_database()
            with backend.lock():
                pending = backend.to_apply(migrations)
                backend.apply_migrations(pending)
                return [migration.id for migration in pending]
    except LockTimeout as error:
        raise MigrationError(str(error)) from error
    except psycopg.OperationalError as error:
        raise MigrationError(f"PostgreSQL cannot be reached: {_first_line(error)}") from error
    except psycopg.Error as error:
        raise MigrationError(f"A migration failed: {_first_line(error)}") from error


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]
