"""Applying the migrations in sql/migrations, as `yoyo apply` does, from any number of processes."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import psycopg
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.exceptions import LockTimeout
from yoyo.migrations import default_migration_table

from service.domain.operators import OperatorError
from service.postgresql.migration_files import FOLDER, names_of_migrations
from service.postgresql.startup_check import wrong_encoding
from service.postgresql.urls import DatabaseUrl, DatabaseUrlError, parse_database_url

LONGEST_WAIT: Final = timedelta(minutes=5)
TRIES: Final = 10
"""How often a migration is tried that a running service deadlocks with."""
_POLL_SECONDS: Final = 0.2
log = logging.getLogger(__name__)

_OURS: Final = "referrals-migrate"

# Released with its connection, however that ends: one of the service's own migrators is at work.
_TRY_TO_BE_THE_ONE: Final = "SELECT pg_try_advisory_lock(hashtext('referrals-migrate'))"

# Run while this process holds that lock: a row of another of the service's own migrators (pid below
# 0) is a dead one's, and so is plain yoyo's once nobody is connected who could have written it.
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

_HAS_TABLE: Final = "SELECT to_regclass('_yoyo_migration') IS NOT NULL"

_FIND_APPLIED: Final = "SELECT migration_id FROM _yoyo_migration"

_RIGHTS: Final = """
    SELECT quote_ident(current_user),
           current_setting('search_path'),
           quote_ident(current_schema()),
           current_setting('transaction_read_only')::boolean,
           has_schema_privilege(current_schema(), 'CREATE'),
           (
            SELECT min(quote_ident(tableowner))
              FROM pg_tables
             WHERE schemaname = current_schema()
               AND tablename IN ('_yoyo_migration', 'yoyo_lock', 'users')
               AND NOT pg_has_role(tableowner, 'USAGE')
           )
"""


class MigrationError(OperatorError):
    """The migrations could not be applied: one sentence for the operator."""


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """yoyo's backend, with a lock that does not outlive a killed migrator."""

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
            raise LockTimeout("Another migrator is running.")
        for (dead,) in self.execute(_BREAK_STALE_LOCK).fetchall():
            log.warning("broke the stale lock of migrator %s", abs(dead))
        super()._insert_lock_row(-pid, _POLL_SECONDS)

    def _delete_lock_row(self, pid: int) -> None:
        super()._delete_lock_row(-pid)


def apply_migrations(database_url: str) -> list[str]:
    """Apply what is pending, and return the names; raise MigrationError."""
    try:
        uri = _yoyo_uri(parse_database_url(database_url))
        with _Backend(uri, default_migration_table) as backend:
            _check_encoding(backend.connection)
            if not _is_pending(backend.connection):
                return []  # which needs no right but to read
            _check_rights(backend.connection)
            return _apply(backend)
    except DatabaseUrlError as error:
        raise MigrationError(f"DATABASE_URL {error}") from error
    except LockTimeout as error:
        raise MigrationError(str(error)) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"The role lacks a right: {_first_line(error)}; migrate as the owner of the tables."
        ) from error
    except psycopg.errors.DeadlockDetected as error:
        raise MigrationError(
            "A migration and requests keep deadlocking: migrate when there are fewer requests."
        ) from error
    except psycopg.OperationalError as error:
        raise MigrationError(f"PostgreSQL cannot be reached: {_first_line(error)}") from error
    except psycopg.Error as error:
        raise MigrationError(f"A migration failed: {_first_line(error)}") from error


def _apply(backend: _Backend) -> list[str]:
    migrations = read_migrations(str(FOLDER))
    backend.init_database()
    with backend.lock():
        wanted = pending = backend.to_apply(migrations)
        for attempt in range(1, TRIES + 1):
            try:
                backend.apply_migrations(pending)
                break
            except psycopg.errors.DeadlockDetected:
                if attempt == TRIES:
                    raise
                log.warning("a migration and a request waited for each other; it is tried again")
                pending = backend.to_apply(migrations)
        return [migration.id for migration in wanted]


def _check_encoding(connection: Any) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise MigrationError(wrong_encoding(connection.info.dbname, encoding))


def _is_pending(connection: Any) -> bool:
    if connection.execute(_HAS_TABLE).fetchone() != (True,):
        return True
    applied = {name for (name,) in connection.execute(_FIND_APPLIED).fetchall()}
    return not applied.issuperset(names_of_migrations())


def _check_rights(connection: Any) -> None:
    """Raise MigrationError if the role may not do what migrations do."""
    role, path, schema, is_read_only, may_create, owner = connection.execute(_RIGHTS).fetchone()
    if is_read_only:
        raise MigrationError(
            "The database is read-only (a standby, or default_transaction_read_only is on): "
            "point DATABASE_URL at the primary."
        )
    if schema is None:
        name = path.rpartition(",")[2].strip()
        raise MigrationError(
            f"The role {role} may use no schema of its search_path ({path}): CREATE SCHEMA "
            f"IF NOT EXISTS {name}; GRANT USAGE, CREATE ON SCHEMA {name} TO {role};"
        )
    if not may_create:
        raise MigrationError(
            f"The role {role} may not create tables in the schema {schema}: "
            f"as its owner, GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};"
        )
    if owner is not None:
        raise MigrationError(
            f"The tables belong to the role {owner}, of which {role} is not a member: "
            f"migrate as {owner}, or GRANT {owner} TO {role};"
        )


def _yoyo_uri(url: DatabaseUrl) -> DatabaseURI:
    """Return the URL in yoyo's form; several hosts are joined, as libpq takes them."""
    names = [host.name or "" for host in url.hosts]
    ports = [str(host.port or "") for host in url.hosts]
    return DatabaseURI(
        scheme="postgresql+psycopg",
        username=url.user,
        password=url.password,
        hostname=",".join(names) if any(names) else None,
        port=",".join(ports) if any(ports) else None,
        database=url.database,
        # Stale locks are told from others by it.
        args={**url.parameters, "application_name": _OURS},
    )


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]
