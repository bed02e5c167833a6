"""What PostgreSQL does for each statement of the request path, on the data set."""

import importlib
import pkgutil
from pathlib import Path
from typing import Any, Final

import psycopg

from service import repositories

BESIDE_REQUESTS: Final = {
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
        if name.isupper() and isinstance(text, str)
    }


def plan_of(connection: "psycopg.Connection[Any]", statement: str) -> str:
    """Return how PostgreSQL would do the statement, whatever its arguments are."""
    connection.execute(f"PREPARE asked AS {statement}".encode())
    try:
        row = connection.execute(
            "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'asked'"
        ).fetchone()
        assert row is not None
        arguments = f"({', '.join(['NULL'] * row[0])})" if row[0] else ""
        rows = connection.execute(f"EXPLAIN EXECUTE asked{arguments}".encode()).fetchall()
    finally:
        connection.execute("DEALLOCATE asked")
    return "\n".join(line for (line,) in rows)


def show(database_url: str, file: Path) -> None:
    """Write all plans to the file; raise AssertionError where one reads a whole table."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        plans = {key: plan_of(connection, text) for key, text in statements().items()}
    file.write_text(
        "\n\n".join(f"{module}.{name}\n{plan}" for (module, name), plan in plans.items())
    )
    print(f"The plans of {len(plans)} statements are in {file}.", flush=True)
    for key, plan in plans.items():
        scanned = [table for table in LARGE if f"Seq Scan on {table}" in plan]
        assert key in BESIDE_REQUESTS or not scanned, f"{key} reads all of {scanned}:\n{plan}"
