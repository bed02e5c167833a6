"""All statements of the repositories, and how PostgreSQL would do each."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from service import repositories

BESIDE_REQUESTS: Final = {
    ("migrations", "FIND_APPLIED"),  # for health checks, of a table of a dozen rows
    ("oauth_clients", "LIST"),  # for operators
    ("rewards", "FIND_DUE"),  # of a table of programmes, for the sweep
}
"""Statements that may read a whole table."""


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


def plan_of(connection: "psycopg.Connection[Any]", statement: str) -> str:
    """Return the plan of the statement for any arguments."""
    with prepared(connection, statement) as types:
        arguments = f"({', '.join(['NULL'] * len(types))})" if types else ""
        return explained(connection, f"EXPLAIN EXECUTE asked{arguments}")


@contextmanager
def prepared(connection: "psycopg.Connection[Any]", statement: str) -> Iterator[list[str]]:
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


def arguments_of(types: Sequence[str], values: Mapping[str, str]) -> str:
    """Return the arguments in brackets, by type; an array has one element."""
    each = [
        f"ARRAY[{values[of.removesuffix('[]')]}]::{of}" if "[]" in of else values[of]
        for of in types
    ]
    return f"({', '.join(each)})" if each else ""


def explained(connection: "psycopg.Connection[Any]", question: str) -> str:
    """Return the lines that an EXPLAIN answers with."""
    return "\n".join(line for (line,) in connection.execute(question.encode()).fetchall())
