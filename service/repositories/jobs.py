"""The SQL of jobs: work that follows a write, stored in its transaction."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from uuid6 import uuid7

from service.repositories.connection import Connection

INSERT: Final = """
    INSERT INTO jobs (job_id, kind, payload, created_at)
    VALUES ($1, $2, $3, $4)
"""

OLDEST: Final = """
    SELECT job_id, payload
      FROM jobs
     WHERE kind = $1
     ORDER BY job_id
     LIMIT $2
"""

DELETE: Final = """
    DELETE FROM jobs
     WHERE job_id = ANY ($1)
"""


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work: what `payload` means is its kind's matter."""

    job_id: UUID
    payload: Any


class JobRepository:
    """Jobs, one statement a method."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(self, kind: str, payload: Any, now: datetime) -> None:
        await self._connection.execute(INSERT, uuid7(), kind, json.dumps(payload), now)

    async def oldest(self, kind: str, limit: int) -> list[Job]:
        rows = await self._connection.fetch(OLDEST, kind, limit)
        return [Job(row["job_id"], json.loads(row["payload"])) for row in rows]

    async def delete(self, job_ids: Sequence[UUID]) -> None:
        await self._connection.execute(DELETE, job_ids)
