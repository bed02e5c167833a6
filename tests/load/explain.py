"""The plan of every statement on the benchmark's data set."""

from pathlib import Path
from typing import Any, Final

import psycopg

from tests.load.servers import row_id
from tests.sql.plans import BESIDE_REQUESTS, arguments_of, explained, plan_of, prepared, statements

LARGE: Final = ("users", "referrals", "referral_codes")
"""The tables of the data set; small ones may be read whole (tests/sql/test_plans.py)."""
ONCE: Final = {("standings", "BEGIN"), ("differences", "STANDINGS")}
"""What reads all of a referrer's referrals: once, when it begins to count them, and the ledger's
check, which counts them again."""
ARGUMENTS: Final = {
    "uuid": f"'{row_id(1, 1)}'",
    "text": "'person1@example.com'",
    "integer": "21",
    "bigint": "21",
    "smallint": "21",
    "boolean": "true",
    "bytea": "''",
    "json": "'{}'",
    "jsonb": "'[]'",
    "timestamp with time zone": "now()",
}
"""An argument of each type: an id or an email address is that of user 1, who has 10³ referrals."""


def work_of(connection: "psycopg.Connection[Any]", statement: str) -> str:
    """Return how PostgreSQL does the statement for ARGUMENTS, and with how many buffers."""
    with prepared(connection, statement) as types:
        arguments = arguments_of(types, ARGUMENTS)
        try:
            with connection.transaction(force_rollback=True):
                question = f"EXPLAIN (ANALYZE, BUFFERS) EXECUTE asked{arguments}"
                return explained(connection, question)
        except psycopg.IntegrityError as error:
            return f"Not stored: {error}"


def show(database_url: str, file: Path) -> None:
    """Write all plans to the file; raise AssertionError where one reads a whole table.

    Each plan is there twice: for any arguments, and as it went for ARGUMENTS.
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
        assert key in {*BESIDE_REQUESTS, *ONCE} or not scanned, (
            f"{key} reads all of {scanned}:\n{plan}"
        )
