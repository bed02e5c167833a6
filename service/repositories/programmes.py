"""The SQL of programmes and the versions of their rules."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from service.domain.errors import ProgrammeKeyTaken, RulesChanged
from service.domain.pages import Cursor
from service.domain.programmes import Programme
from service.repositories.connection import LAST_ID, Repository
from service.repositories.constraints import on_violation

_COLUMNS: Final = """
    programme_id, key, name, version, landing_url, paused, leaderboard, ended_at, created_at
"""

ADD: Final = f"""
    INSERT INTO programmes ({_COLUMNS})
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""

ADD_VERSION: Final = """
    INSERT INTO programme_versions (programme_id, version, rules, made_by, created_at)
    VALUES ($1, $2, $3, $4, $5)
"""

# The row is locked from the first look on, so that of two that replace a version one waits.
NEXT_VERSION: Final = """
    UPDATE programmes
       SET version = version + 1
     WHERE programme_id = $1
       AND version = $2
    RETURNING version
"""

FIND: Final = f"SELECT {_COLUMNS} FROM programmes WHERE key = $1"

FIND_BY_ID: Final = f"SELECT {_COLUMNS} FROM programmes WHERE programme_id = $1"

LOCK: Final = f"{FIND} FOR NO KEY UPDATE"

_SELECT_WITH_RULES: Final = """
    SELECT p.programme_id, p.key, p.name, p.version, p.landing_url, p.paused, p.leaderboard,
           p.ended_at, p.created_at, v.rules
      FROM programmes p
      JOIN programme_versions v USING (programme_id, version)
"""

FIND_WITH_RULES: Final = f"{_SELECT_WITH_RULES} WHERE p.key = $1"

NEWEST: Final = f"""
    {_SELECT_WITH_RULES}
     WHERE (p.created_at, p.programme_id)
           < (COALESCE($1::timestamptz, 'infinity'), COALESCE($2::uuid, $4))
     ORDER BY p.created_at DESC, p.programme_id DESC
     LIMIT $3
"""

UPDATE: Final = """
    UPDATE programmes
       SET name = $2, landing_url = $3, paused = $4, leaderboard = $5, ended_at = $6
     WHERE programme_id = $1
"""

FIND_VERSION: Final = """
    SELECT v.rules, v.created_at
      FROM programme_versions v
      JOIN programmes p USING (programme_id)
     WHERE p.key = $1
       AND v.version = $2
"""

FIND_RULES: Final = """
    SELECT rules
      FROM programme_versions
     WHERE programme_id = $1
       AND version = $2
"""


class ProgrammeRepository(Repository):
    """Programmes and their versions, one statement a method. Rules are JSON as it was stored."""

    async def add(self, programme: Programme) -> None:
        """Store a programme; raise ProgrammeKeyTaken."""
        with on_violation({"programmes_key_unique": ProgrammeKeyTaken}):
            await self._connection.execute(
                ADD,
                programme.programme_id,
                programme.key,
                programme.name,
                programme.version,
                programme.landing_url,
                programme.paused,
                programme.leaderboard,
                programme.ended_at,
                programme.created_at,
            )

    async def add_version(
        self, programme_id: UUID, version: int, rules: str, made_by: str, now: datetime
    ) -> None:
        """Store a version of the rules; raise RulesChanged if another request has."""
        with on_violation({"programme_versions_follow_each_other": RulesChanged}):
            await self._connection.execute(ADD_VERSION, programme_id, version, rules, made_by, now)

    async def next_version(self, programme_id: UUID, replaced: int) -> int:
        """Return the version after the one replaced; raise RulesChanged if that is not newest."""
        version: int | None = await self._connection.fetchval(NEXT_VERSION, programme_id, replaced)
        if version is None:
            raise RulesChanged
        return version

    async def find(self, key: str) -> Programme | None:
        return await self._one(_programme, FIND, key)

    async def find_by_id(self, programme_id: UUID) -> Programme | None:
        return await self._one(_programme, FIND_BY_ID, programme_id)

    async def find_with_rules(self, key: str) -> tuple[Programme, str] | None:
        """Return a programme and its newest rules."""
        return await self._one(_with_rules, FIND_WITH_RULES, key)

    async def lock(self, key: str) -> Programme | None:
        """Return a programme that nobody else changes until the transaction ends."""
        return await self._one(_programme, LOCK, key)

    async def newest(self, limit: int, after: Cursor | None) -> Sequence[tuple[Programme, str]]:
        """Return up to `limit` programmes with their newest rules, newest first."""
        rows = await self._connection.fetch(
            NEWEST, after and after.at, after and after.row_id, limit, LAST_ID
        )
        return [_with_rules(row) for row in rows]

    async def update(self, programme: Programme) -> None:
        await self._connection.execute(
            UPDATE,
            programme.programme_id,
            programme.name,
            programme.landing_url,
            programme.paused,
            programme.leaderboard,
            programme.ended_at,
        )

    async def find_version(self, key: str, version: int) -> tuple[str, datetime] | None:
        """Return a version's rules, and when they were made."""
        row = await self._connection.fetchrow(FIND_VERSION, key, version)
        return None if row is None else (row["rules"], row["created_at"])

    async def find_rules(self, programme_id: UUID, version: int) -> str:
        """Return the rules of a version that a referral was made under."""
        rules: str = await self._connection.fetchval(FIND_RULES, programme_id, version)
        return rules


def _programme(row: Any) -> Programme:
    return Programme(**row)


def _with_rules(row: Any) -> tuple[Programme, str]:
    members = dict(row)
    rules: str = members.pop("rules")
    return Programme(**members), rules
