"""What PostgreSQL is asked, statement by statement."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import pytest


@contextmanager
def recorded_statements() -> Iterator[list[tuple[str, Any]]]:
    """Record what all connections are asked, and what they answer."""
    statements: list[tuple[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("execute", "fetch", "fetchrow", "fetchval"):
            method = getattr(asyncpg.Connection, name)

            async def record(
                self: asyncpg.Connection,
                query: str,
                *arguments: Any,
                _method: Any = method,
                **of: Any,
            ) -> Any:
                answer = await _method(self, query, *arguments, **of)
                statements.append((query, answer))
                return answer

            patch.setattr(asyncpg.Connection, name, record)
        yield statements
