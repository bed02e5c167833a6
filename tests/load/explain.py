"""What PostgreSQL does for each statement of the request path, on the data set."""

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from service import repositories
from tests.load.servers import row_id

BESIDE_REQUESTS: Final = {
    ("migrations", "FIND_APPLIED"),  # for health checks, of a table of a dozen rows
    ("oauth_clients", "LIST"),  # for operators
}
"""Statements that may read a whole table."""
LARGE: Final = ("users", "referrals", "referral_codes")
"""The tables of the data set; of the small ones reading all may be quicker (tests/sql)."""


def statements() -> dict[tuple[str, str], str]:
    """Return all statements of the repositories, by module and name."""
    return {
        (module.name, name): text
        for module in pkgutil.iter_modules(repositories.__path__)
        for name, text in vars(
            importlib.import_module(f"{repositories.__name__}.{module.name}")
        ).items()
        if name.isupper() and not name.startswith("_") and isinstance(text, str)
    }


ARGUMENTS: Final = {
    "uuid": f"'{row_id(1, 1)}'",
    "text": "'person1@example.com'",
    "integer": "21",
    "bigint": "21",
    "smallint": "21",
    "boolean": "true",
    "bytea": "''",
    "jsonb": "'[]'",
    "timestamp with time zone": "now()",
}
"""An argument of each type: where it is somebody's, the first user's, who has 10³ referrals."""


def plan_of(connection: "psycopg.Connection[Any]", statement: str) -> str:
    """Return how PostgreSQL would do the statement, whatever its arguments are."""
    with _prepared(connection, statement) as types:
        arguments = f"({', '.join(['NULL'] * len(types))})" if types else ""
        return _told(connection, f"EXPLAIN EXECUTE asked{arguments}")


def work_of(connection: "psycopg.Connection[Any]", statement: str) -> str:
    """Return how PostgreSQL does the statement for ARGUMENTS, and with how many buffers."""
    with _prepared(connection, statement) as types:
        values = [
            f"ARRAY[{ARGUMENTS[of.removesuffix('[]')]}]::{of}" if "[]" in of else ARGUMENTS[of]
            for of in types
        ]
        arguments = f"({', '.join(values)})" if values else ""
        try:
            with connection.transaction(force_rollback=True):
                told = f"EXPLAIN (ANALYZE, BUFFERS) EXECUTE asked{arguments}"
                return _told(connection, told)
        except psycopg.IntegrityError as error:
            return f"Not stored: {error}"


@contextmanager
def _prepared(connection: "psycopg.Connection[Any]", statement: str) -> Iterator[list[str]]:
    """Prepare the statement as `asked`; yield the types of its arguments."""
    connection.execute(f"PREPARE asked AS {statement}".encode())
    try:
        row = connection.execute(
            "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = 'asked'"
        ).fetchone()
        assert row is not None
        yield row[0]
    finally:
        connection.execute("DEALLOCATE asked")


def _told(connection: "psycopg.Connection[Any]", question: str) -> str:
    return "\n".join(line for (line,) in connection.execute(question.encode()).fetchall())


def show(database_url: str, file: Path) -> None:
    """Write all plans to the file; raise AssertionError where one reads a whole table.

    Each is there twice: as it is for any arguments, and as it went for some.
    """
    with psycopg.connect(database_url, autocommit=True) as connection:
        works = {key: work_of(connection, text) for key, text in statements().items()}
        connection.execute("SET plan_cache_mode = force_generic_plan")
        plans = {key: plan_of(connection, text) for key, text in statements().items()}
    file.write_text(
        "\n\n".join(
            f"{module}.{name}\n{plan}\n\n{works[module, name]}"
            for (module, name), plan in plans.items()
        )
    )
    print(f"The plans of {len(plans)} statements are in {file}.", flush=True)
    for key, plan in plans.items():
        scanned = [table for table in LARGE if f"Seq Scan on {table}" in plan]
        assert key in BESIDE_REQUESTS or not scanned, f"{key} reads all of {scanned}:\n{plan}"
