"""What is wrong with the database for good, said in one sentence before anything starts.

While PostgreSQL is only away the service starts, and says so. A password, a role, a database or a
schema that is wrong is mended by no waiting.
"""

import ssl
from typing import Final

import asyncpg

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

# Three of the tables stand for all: rights are granted for a whole schema.
_TABLES_WITHOUT_RIGHTS: Final = """
    SELECT name
      FROM unnest('{jobs,sessions,users}'::text[]) AS name
     WHERE NOT (
        has_table_privilege(name, 'SELECT')
        AND has_table_privilege(name, 'INSERT')
        AND has_table_privilege(name, 'UPDATE')
     )
"""


class DatabaseUnusable(Exception):
    """No waiting will help: one sentence for the operator, with what to do."""


async def check_connection(database_url: str) -> None:
    """Raise DatabaseUnusable where the URL cannot lead anywhere; pass while PostgreSQL is away."""
    connection = await _connect(parse_database_url(database_url))
    if connection is not None:
        connection.terminate()


async def check_database(database_url: str) -> None:
    """Like check_connection, and the schema and the rights have to be there too."""
    connection = await _connect(parse_database_url(database_url))
    if connection is None:
        return
    try:
        await _check_schema(connection)
    except (
        OSError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
    ):
        return  # it has gone away since
    finally:
        connection.terminate()


async def _connect(url: DatabaseUrl) -> "asyncpg.Connection[asyncpg.Record] | None":
    try:
        return await open_connection(url, prepared_statements=False)
    except Exception as error:
        if is_permanent(error):
            raise DatabaseUnusable(_explain(error, url)) from error
        return None


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
    if missing:
        raise DatabaseUnusable(what_is_missing(missing))
    if tables := await connection.fetch(_TABLES_WITHOUT_RIGHTS):
        names = ", ".join(row["name"] for row in tables)
        raise DatabaseUnusable(f"The role {role} lacks rights on {names}: {grant}")


def what_is_missing(migrations: list[str]) -> str:
    """Return the sentence about migrations that are not applied."""
    if migrations == [*names_of_migrations()]:
        return f"The database has no tables yet: {_MIGRATE}."
    return f"The database schema is older than this release: {_MIGRATE}; missing: " + ", ".join(
        migrations
    )


def wrong_encoding(database: str | None, encoding: str | None) -> str:
    """Return the sentence about a database that cannot hold every text."""
    return (
        f"The database {database} has the encoding {encoding}, and has to have UTF8: "
        "CREATE DATABASE name TEMPLATE template0 ENCODING 'UTF8', and let DATABASE_URL name it."
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
                "correct the role in DATABASE_URL or pg_hba.conf, or give it leave: "
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
