"""What a repository works on."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar
from uuid import UUID

import asyncpg.pool

# Quoted, because asyncpg's classes are generic for type checkers alone.
Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)

T = TypeVar("T")
FIRST_ID: Final = UUID(int=0)
LAST_ID: Final = UUID(int=2**128 - 1)
"""Comes after every id: where the first page of a list begins that has the newest first."""


class Repository:
    """The statements about one table, on a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def _one(self, make: Callable[[Any], T], statement: str, *arguments: Any) -> T | None:
        """Return what `make` makes of the row that the statement returns; None without a row."""
        row = await self._connection.fetchrow(statement, *arguments)
        return None if row is None else make(row)

    async def _found(self, statement: str, *arguments: Any) -> bool:
        """Return whether the statement returns a row."""
        return await self._connection.fetchval(statement, *arguments) is not None

    async def _pages(
        self, count: int, make: Callable[[Any], T], statement: str, *arguments: Any
    ) -> list[list[T]]:
        """Return what is made of the rows of each page: their first column is its place, from 1.

        LIMIT is one number for all of them: knowing it, PostgreSQL plans for few rows.
        """
        found: list[list[T]] = [[] for _ in range(count)]
        for row in await self._connection.fetch(statement, *arguments):
            found[row[0] - 1].append(make(row[1:]))
        return found


def unnested(*types: str) -> str:
    """Return `unnest` of the first parameters, arrays of the types, as rows.

    The planner does not see how many there are: knowing it, it would plan the statement anew each
    time (sql/README.md, *Plans*).
    """
    arrays = (f"(SELECT ${number}::{each}[])" for number, each in enumerate(types, 1))
    return f"unnest({', '.join(arrays)})"


def rows_in(status: str) -> int:
    """Return how many rows a statement changed, from its status: `DELETE 12`."""
    return int(status.rpartition(" ")[2])
