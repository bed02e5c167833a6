"""What is permanently wrong with the database, in one sentence before anything starts.

While PostgreSQL is merely away the service starts, and reports it; waiting does not mend a wrong
password, role, database or schema.
"""

import ssl
from typing import Final

import asyncpg

from service.domain.operators import OperatorError
from service.postgresql.database import missing_migrations
from service.postgresql.hosts import WrongEncoding, is_permanent, open_connection
from service.postgresql.migration_files import names_of_migrations
from service.postgresql.urls import DatabaseUrl, parse_database_url

_MIGRATE: Final = "run `python -m service migrate`"

_STATE: Final = """
    SELECT quote_ident(current_user) AS role,
           current_setting('search_path') AS path,
           quote_ident(current_schema()) AS schema
"""

# Three tables stand for all: rights are granted on a whole schema.
_TABLES_WITHOUT_RIGHTS: Final = """
    SELECT name
      FROM unnest('{jobs,sessions,users}'::text[]) AS name
     WHERE NOT (
        has_table_privilege(name, 'SELECT')
        AND has_table_privilege(name, 'INSERT')
        AND has_table_privilege(name, 'UPDATE')
     )
"""


class DatabaseUnusable(OperatorError):
    """Waiting will not help: one sentence for the operator, with what to do."""


async def check_database(database_url: str, *, tables: bool = True) -> None:
    """Raise DatabaseUnusable if the URL cannot lead anywhere; pass while PostgreSQL is away.

    With `tables` the schema and the rights must be there, too.
    """
    url = parse_database_url(database_url)
    try:
        connection = await open_connection(url, prepared_statements=False)
    except Exception as error:
        if is_permanent(error):
            raise DatabaseUnusable(_explain(error, url)) from error
        return
    try:
        if tables:
            await _check_schema(connection)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        return  # it has gone away since
    finally:
        connection.terminate()


async def _check_schema(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    role, path, schema = await connection.fetchrow(_STATE) or (None, None, None)
    if schema is None:
        name = str(path).rpartition(",")[2].strip()
        raise DatabaseUnusable(
            f"The role {role} may use no schema of its search_path ({path}): "
            f"GRANT USAGE ON SCHEMA {name} TO {role};"
        )
    grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role};"
    try:
        missing = await missing_migrations(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        raise DatabaseUnusable(f"The role {role} may not read the tables: {grant}") from error
    if missing == [*names_of_migrations()]:
        raise DatabaseUnusable(f"The database has no tables yet: {_MIGRATE}.")
    if missing:
        names = ", ".join(missing)
        raise DatabaseUnusable(
            f"The database schema is older than this release: {_MIGRATE}; missing: {names}"
        )
    if tables := await connection.fetch(_TABLES_WITHOUT_RIGHTS):
        names = ", ".join(row["name"] for row in tables)
        raise DatabaseUnusable(f"The role {role} lacks rights on {names}: {grant}")


def wrong_encoding(database: str | None, encoding: str | None) -> str:
    """Return the sentence about a database that cannot hold every text."""
    return (
        f"The database {database} has the encoding {encoding} instead of UTF8: "
        "CREATE DATABASE name TEMPLATE template0 ENCODING 'UTF8', and name it in DATABASE_URL."
    )


def _explain(error: Exception, url: DatabaseUrl) -> str:
    said = str(error).partition("\n")[0].rstrip(".")
    role, database = _quoted(url.user), _quoted(url.database or url.user)
    match error:
        case WrongEncoding():
            return wrong_encoding(url.database or url.user, said)
        case asyncpg.InvalidPasswordError():
            remedy = "correct the password in DATABASE_URL."
        case asyncpg.InvalidAuthorizationSpecificationError():
            remedy = (
                "correct the role in DATABASE_URL or pg_hba.conf, or let it log in: "
                f"CREATE or ALTER ROLE {role} LOGIN;"
            )
        case asyncpg.InvalidCatalogNameError():
            remedy = (
                f"correct its name in DATABASE_URL, or CREATE DATABASE {database} "
                "TEMPLATE template0 ENCODING 'UTF8';"
            )
        case asyncpg.InsufficientPrivilegeError():
            remedy = f"GRANT CONNECT ON DATABASE {database} TO {role};"
        case ssl.SSLError() | ConnectionError():
            remedy = "correct sslmode or the certificates in DATABASE_URL."
        case _:
            remedy = "correct DATABASE_URL."
    return f"PostgreSQL cannot be used: {said}: {remedy}"


def _quoted(name: str | None) -> str:
    return '"{}"'.format((name or "").replace('"', '""'))
