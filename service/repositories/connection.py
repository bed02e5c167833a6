"""What a repository works on."""

from typing import TypeAlias

import asyncpg.pool

# Quoted, because asyncpg's classes are generic for type checkers alone.
Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)
