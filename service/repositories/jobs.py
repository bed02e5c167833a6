"""The SQL of jobs: work that follows a write, stored in its transaction."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.jobs import Backlog, Job, JobKind, JobState
from service.repositories.connection import Repository

INSERT: Final = """
    INSERT INTO jobs (job_id, kind, payload, created_at, due_at)
    SELECT job_id, kind, payload, $4, $5
      FROM unnest($1::uuid[], $2::text[], $3::jsonb[]) AS new (job_id, kind, payload)
"""

OLDEST: Final = """
    SELECT job_id, kind, payload, tries, created_at
      FROM jobs
     WHERE kind = $1
     ORDER BY job_id
     LIMIT $2
"""

CLAIM: Final = """
    UPDATE jobs
       SET tries = tries + 1, due_at = $3
     WHERE job_id = (
        SELECT job_id
          FROM jobs
         WHERE kind = $1
           AND due_at <= $2
           AND parked_at IS NULL
         ORDER BY due_at
         LIMIT 1
           FOR UPDATE SKIP LOCKED
     )
    RETURNING job_id, kind, payload, tries, created_at
"""

# Unless another worker has claimed it since, because this one took too long.
POSTPONE: Final = """
    UPDATE jobs
       SET due_at = $3, last_error = $4, payload = coalesce($5, payload)
     WHERE job_id = $1
       AND tries = $2
"""

PARK: Final = """
    UPDATE jobs
       SET parked_at = $3, last_error = $4
     WHERE job_id = $1
       AND tries = $2
"""

DELETE: Final = """
    DELETE FROM jobs
     WHERE job_id = ANY (ARRAY(SELECT unnest($1::uuid[])))
"""

GIVE_BACK: Final = """
    UPDATE jobs
       SET tries = tries - 1, due_at = $3
     WHERE job_id = $1
       AND tries = $2
"""

# Claimed deliveries to an endpoint.
UNDER_WAY: Final = """
    SELECT job_id, tries
      FROM jobs
     WHERE kind = 'delivery'
       AND payload ->> 'endpoint_id' = $1
       AND due_at > $2
       AND tries > 0
       AND last_error IS NULL
"""

STILL_UNDER_WAY: Final = """
    SELECT job_id, tries
      FROM jobs
      JOIN unnest($1::uuid[], $2::integer[]) AS begun (job_id, tries) USING (job_id, tries)
     WHERE last_error IS NULL
"""

NEWEST: Final = """
    SELECT job_id, kind, tries, created_at, due_at, parked_at, last_error
      FROM jobs
     WHERE parked_at IS NOT NULL OR NOT $1
     ORDER BY job_id DESC
     LIMIT $2
"""

RETRY: Final = """
    UPDATE jobs
       SET parked_at = NULL, tries = 0, due_at = $2
     WHERE parked_at IS NOT NULL
       AND ($1::uuid IS NULL OR job_id = $1)
    RETURNING job_id
"""

BACKLOGS: Final = """
    SELECT kind,
           count(*) FILTER (WHERE parked_at IS NULL) AS pending,
           count(*) FILTER (WHERE parked_at IS NOT NULL) AS parked,
           min(created_at) FILTER (WHERE parked_at IS NULL) AS oldest
      FROM jobs
     GROUP BY kind
"""

# Other jobs find no account any more, and are deleted once done.
DELETE_PARKED_OF_USER: Final = """
    DELETE FROM jobs
     WHERE parked_at IS NOT NULL
       AND (payload ->> 'user_id' = $1 OR payload ->> 'email_key' = $2)
"""


class JobRepository(Repository):
    """Jobs, one statement per method."""

    async def add(self, kind: JobKind, payload: Any, now: datetime) -> None:
        """Store a job that is done without being claimed."""
        await self._insert({kind: payload}, now, None)

    async def add_due(
        self, payloads: Mapping[JobKind, Any], now: datetime, head_start: timedelta = timedelta()
    ) -> None:
        """Store a job of each kind, already due for `head_start`."""
        await self._insert(payloads, now, now - head_start)

    async def _insert(
        self, payloads: Mapping[JobKind, Any], now: datetime, due_at: datetime | None
    ) -> None:
        await self._connection.execute(
            INSERT,
            [uuid7() for _ in payloads],
            list(payloads),
            [json.dumps(payload) for payload in payloads.values()],
            now,
            due_at,
        )

    async def oldest(self, kind: JobKind, limit: int) -> list[Job]:
        return [_job(row) for row in await self._connection.fetch(OLDEST, kind, limit)]

    async def claim(self, kind: JobKind, now: datetime, until: datetime) -> Job | None:
        """Claim the job that has been due for longest `until` then, and return it."""
        return await self._one(_job, CLAIM, kind, now, until)

    async def postpone(
        self, job: Job, due_at: datetime, error: str | None, payload: Any = None
    ) -> None:
        """Make the job due later, with another payload if one is given."""
        changed = None if payload is None else json.dumps(payload)
        await self._connection.execute(POSTPONE, job.job_id, job.tries, due_at, error, changed)

    async def park(self, job: Job, now: datetime, error: str) -> None:
        await self._connection.execute(PARK, job.job_id, job.tries, now, error)

    async def delete(self, job_ids: Sequence[UUID]) -> None:
        await self._connection.execute(DELETE, job_ids)

    async def give_back(self, job_id: UUID, tries: int, now: datetime) -> None:
        """Undo a claim without an attempt."""
        await self._connection.execute(GIVE_BACK, job_id, tries, now)

    async def under_way(self, endpoint_id: UUID, now: datetime) -> list[tuple[UUID, int]]:
        """Return the claimed jobs of an endpoint, with their tries."""
        rows = await self._connection.fetch(UNDER_WAY, str(endpoint_id), now)
        return [(row["job_id"], row["tries"]) for row in rows]

    async def still_under_way(self, begun: Sequence[tuple[UUID, int]]) -> list[tuple[UUID, int]]:
        """Return those jobs whose tries have not ended."""
        job_ids, tries = [job_id for job_id, _ in begun], [number for _, number in begun]
        rows = await self._connection.fetch(STILL_UNDER_WAY, job_ids, tries)
        return [(row["job_id"], row["tries"]) for row in rows]

    async def newest(self, limit: int, *, parked_alone: bool) -> list[JobState]:
        rows = await self._connection.fetch(NEWEST, parked_alone, limit)
        return [JobState(**row) for row in rows]

    async def retry(self, job_id: UUID | None, now: datetime) -> int:
        """Make a parked job due again, or all of them without an id; return how many."""
        return len(await self._connection.fetch(RETRY, job_id, now))

    async def backlogs(self) -> list[Backlog]:
        return [Backlog(**row) for row in await self._connection.fetch(BACKLOGS)]

    async def delete_parked_of_user(self, user_id: UUID, email_key: str) -> None:
        """Delete the parked jobs of an account, and those of mails to its email address."""
        await self._connection.execute(DELETE_PARKED_OF_USER, str(user_id), email_key)


def _job(row: Any) -> Job:
    kind, payload = JobKind(row["kind"]), json.loads(row["payload"])
    return Job(**{**row, "kind": kind, "payload": payload})
