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

from service.settings import one_url_a_host

FOLDER: Final = Path(__file__).parent.parent / "sql" / "migrations"
LONGEST_WAIT: Final = timedelta(minutes=5)
_POLL_SECONDS: Final = 0.2
log = logging.getLogger(__name__)

_OURS: Final = "referrals-migrate"

# Gone with its connection, however that ends: of the service's own migrators one is at work.
_TRY_TO_BE_THE_ONE: Final = "SELECT pg_try_advisory_lock(hashtext('referrals-migrate'))"

# Called while this process is the one: then a lock of another of ours (pid below 0) is of the
# dead, and one of plain yoyo is as soon as nobody else is connected who could hold it.
_BREAK_STALE_LOCK: Final = """
    DELETE FROM yoyo_lock
     WHERE pid < 0
        OR NOT EXISTS (
            SELECT FROM pg_stat_activity
             WHERE datname = current_database()
               AND COALESCE(backend_type, 'client backend') = 'client backend'
               AND (application_name IN ('referrals', 'referrals-migrate')) IS NOT TRUE
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
            try:
                self._try_to_lock(pid)
            except LockTimeout:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def _try_to_lock(self, pid: int) -> None:
        if self.execute(_TRY_TO_BE_THE_ONE).fetchone() != (True,):
            raise LockTimeout("Another migrator is at work.")
        for (dead,) in self.execute(_BREAK_STALE_LOCK).fetchall():
            log.warning("the migrator %s left its lock behind; broken", abs(dead))
        super()._insert_lock_row(-pid, _POLL_SECONDS)

    def _delete_lock_row(self, pid: int) -> None:
        super()._delete_lock_row(-pid)


def apply_migrations(database_url: str) -> list[str]:
    """Apply what is not applied yet; return the names. Raises MigrationError."""
    migrations = read_migrations(str(FOLDER))
    try:
        with _Backend(_yoyo_url(database_url), default_migration_table) as backend:
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


def _yoyo_url(database_url: str) -> Any:
    """Return the URL as yoyo has it; several hosts stand together, as libpq takes them."""
    urls = [
        parse_uri(f"postgresql+psycopg://{url.partition('://')[2]}")
        for url in one_url_a_host(database_url)
    ]
    url = urls[0]._replace(args={**urls[0].args, "application_name": _OURS})
    if len(urls) == 1:
        return url
    return url._replace(
        hostname=",".join(each.hostname for each in urls),
        port=",".join(str(each.port or "") for each in urls),
    )


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]
