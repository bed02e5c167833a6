"""The same runs with a service that is broken on purpose: the checker has to see each.

A sabotage is a few words of the code exchanged for others, in a copy. Where the code has changed
so that the words are no longer there, the run fails too.
"""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.e2e.processes import copy_of_the_project
from tests.faults import faults
from tests.faults.run import Scenario, run

TRIES: Final = 4
"""How many seeds are tried, for what goes wrong only by chance."""

CACHE: Final = "service/redis/cache.py"
FORGETTING: Final = "service/use_cases/cache_invalidation.py"
CODES: Final = "service/use_cases/referral_codes.py"
CODES_SQL: Final = "service/repositories/referral_codes.py"
USERS: Final = "service/use_cases/users.py"
USERS_TABLE: Final = "sql/migrations/0001_users.sql"
CODES_TABLE: Final = "sql/migrations/0003_referral_codes.sql"


@dataclass(frozen=True)
class Sabotage:
    """What is taken out of the service, and the fault under which it is missed."""

    name: str
    scenario: Scenario
    changes: tuple[tuple[str, str, str], ...] = ()
    """File, words, other words."""


NEVER: Final = "        if keys:\n            try:", "        if not keys:\n            try:"
"""The words that make a writer leave the cache alone."""
IN_THE_TRANSACTION: Final = (
    """            async with self._database.autocommit() as repositories:
                keys, replaced = await self._store(repositories, code, wish, replacing=True)
""",
    """            async with self._database.transaction() as repositories:
                keys, replaced = await self._store(repositories, code, wish, replacing=True)
                await self._invalidation.forget(keys)
                keys = []
""",
)
"""The words that make a replacement tell the cache before its commit."""
NO_JOB_OF_A_NEW_CODE: Final = (
    "          FROM owner\n    )\n    SELECT o.email_key",
    "          FROM owner\n         WHERE false\n    )\n    SELECT o.email_key",
)
REFER_AFTER_THE_COMMIT: Final = """
        if registration.referral_code is not None:
            async with self._database.transaction() as repositories:
                _, old_keys = await self._refer(
                    repositories, user.user_id, email, registration.referral_code, now
                )"""
WITH_PASSWORD: Final = "\n                password_hash=password_hash,"
NOTHING_MORE: Final = """
        await self._invalidation.forget(old_keys)
        return user

    async def add(
"""
SLOW: Final = Scenario(faults.slow_ways, ways=True)
SABOTAGES: Final = [
    Sabotage(
        "a reader fills the cache without its lease",
        SLOW,
        ((CACHE, "if redis.call('GET', KEYS[2]) == ARGV[1] then", "if true then"),),
    ),
    Sabotage(
        "a removal leaves the lease",
        SLOW,
        ((CACHE, '("DEL", name, _lease(name), tag)', '("DEL", name, tag)'),),
    ),
    Sabotage(
        "the cache is told before the commit",
        SLOW,
        ((CODES, *IN_THE_TRANSACTION),),
    ),
    Sabotage(
        "the cache is told by the job alone", Scenario(faults.nothing), ((FORGETTING, *NEVER),)
    ),
    Sabotage(
        "no job for what could not be removed",
        Scenario(faults.valkey_suspended),
        (
            (FORGETTING, "await repositories.jobs.add(JobKind.FORGET, some, now)", "pass"),
            (CODES_SQL, *NO_JOB_OF_A_NEW_CODE),
            (CODES_SQL, "         WHERE email_key IS NOT NULL", "         WHERE false"),
        ),
    ),
    Sabotage(
        "keys without the run of Valkey",
        Scenario(faults.valkey_with_old_data),
        ((CACHE, 'f"{redis.generation}:{tag}"', "tag"),),
    ),
    Sabotage(
        "no unique index of live codes",
        SLOW,
        (
            (
                CODES_TABLE,
                "UNIQUE INDEX IF NOT EXISTS referral_codes_one",
                "INDEX IF NOT EXISTS referral_codes_one",
            ),
        ),
    ),
    Sabotage(
        "no unique e-mail", SLOW, ((USERS_TABLE, "_unique UNIQUE (email_key)", " CHECK (true)"),)
    ),
    Sabotage(
        "one use too many",
        Scenario(faults.nothing),
        (
            (CODES_TABLE, "CHECK (uses <= max_uses)", "CHECK (true)"),
            (CODES_SQL, "c.uses + 1 >= c.max_uses", "c.uses + 1 > c.max_uses"),
        ),
    ),
    Sabotage(
        "a deletion does not look again",
        SLOW,
        ((CODES_SQL, 'if not row["was_there"]', "if True"),),
    ),
    Sabotage(
        "user and referral in two transactions",
        Scenario(faults.nothing),
        (
            (USERS, f"registration.referral_code,{WITH_PASSWORD}", f"None,{WITH_PASSWORD}"),
            (
                USERS,
                NOTHING_MORE,
                REFER_AFTER_THE_COMMIT + NOTHING_MORE,
            ),
        ),
    ),
    Sabotage(
        "a repetition is a new request",
        Scenario(faults.commits_unanswered, ways=True),
        (
            (
                "service/use_cases/idempotency.py",
                "if self._key is not None:\n            await _claim",
                "if False:\n            await _claim",
            ),
        ),
    ),
    Sabotage(
        "a connection that was cut is a bug",
        Scenario(faults.way_to_postgresql_broken, ways=True),
        (("service/postgresql/database.py", "OSError,  # refused", "FileExistsError,  # refused"),),
    ),
    Sabotage(
        "PostgreSQL acknowledges what it has not written",
        Scenario(faults.postgresql_killed, durable=False),
    ),
]


def is_seen(sabotage: Sabotage, seed: int, seconds: float) -> str | None:
    """Return the first violation that the sabotage leads to, None if nobody sees it."""
    for attempt in range(TRIES):
        with tempfile.TemporaryDirectory(prefix="sabotage-") as folder:
            project = copy_of_the_project(Path(folder))
            for name, words, others in sabotage.changes:
                text = (project / name).read_text()
                assert words in text, f"{sabotage.name}: {name} has changed, there is no {words!r}"
                (project / name).write_text(text.replace(words, others))
            verdict = asyncio.run(run(sabotage.scenario, seed + attempt, seconds, project))
        if verdict.violations:
            return verdict.violations[0]
    return None
