"""What a repository works on."""

from typing import TypeAlias

import asyncpg.pool

# Quoted, because asyncpg's classes are generic for type checkers alone.
Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)


def rows_in(status: str) -> int:
    """Return how many rows a statement has changed, as its status says: `DELETE 12`."""
    return int(status.rpartition(" ")[2])
