"""What becomes of transactions that fail, deadlock, lose or hang."""

import asyncio
import signal
import sys
from uuid import UUID

import asyncpg
import pytest

from service.domain.errors import DatabaseUnavailable
from service.postgresql.database import Database, TryAgain, retried
from tests.conftest import Servers
from tests.sql.racing import new_code, new_user, refer_to


async def test_a_violation_that_nobody_foresaw_is_no_polite_answer(transactions: Database) -> None:
    async with transactions.autocommit() as repositories:
        user_id = await new_user(repositories)
        with pytest.raises(asyncpg.CheckViolationError):
            await refer_to(repositories, user_id, user_id, b"hash")


async def test_a_transaction_that_deadlocks_is_tried_again(transactions: Database) -> None:
    """PostgreSQL ends one of two that wait for each other; both must end well."""
    codes = [await new_code(transactions) for _ in range(2)]
    both_hold_one = asyncio.Barrier(2)
    conflicts: list[TryAgain] = []

    @retried
    async def lock(first: UUID, second: UUID) -> None:
        try:
            async with transactions.transaction() as repositories:
                await repositories.users.hold(first)
                if not conflicts:
                    await both_hold_one.wait()
                await repositories.users.hold(second)
        except TryAgain as conflict:
            conflicts.append(conflict)
            raise

    one, other = (code.owner_id for code in codes)
    await asyncio.gather(lock(one, other), lock(other, one))
    assert len(conflicts) == 1


HOLD_A_LOCK = """
import asyncio, sys
from uuid import UUID
from service.postgresql import database, hosts

hosts.LIMITS["idle_in_transaction_session_timeout"] = "500ms"

async def main(url, owner_id):
    async with database.connect(url, 1) as postgresql:
        async with postgresql.transaction() as repositories:
            await repositories.users.hold(UUID(owner_id))
            print("holds it", flush=True)
            await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_the_locks_of_a_process_that_is_suspended_amid_a_transaction_go_away(
    servers: Servers, transactions: Database
) -> None:
    owner_id = (await new_code(transactions)).owner_id
    command = [sys.executable, "-c", HOLD_A_LOCK, servers.database_url, str(owner_id)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"holds it\n"
        process.send_signal(signal.SIGSTOP)
        async with transactions.transaction() as repositories:
            await repositories.users.hold(owner_id)
    finally:
        process.kill()
        await process.wait()


async def test_a_transaction_that_loses_every_time_is_given_up() -> None:
    tries = 0

    @retried
    async def lose() -> None:
        nonlocal tries
        tries += 1
        raise TryAgain

    with pytest.raises(DatabaseUnavailable):
        await lose()
    assert tries == 4
