"""What sessions and idempotency keys do beside one another.

Each race says what to remove from the SQL in order to see it lost.
"""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from uuid6 import uuid7

from service.domain.idempotency import IdempotencyKey
from service.domain.oauth import Client
from service.domain.scopes import OF_CLIENTS, Scope
from service.domain.sessions import FIRST_PARTY, Session
from service.domain.users import Role
from service.postgresql.database import Database
from service.repositories.idempotency_keys import Answer
from tests.sql.racing import HASH, LIFE, NOW, new_session, new_user, until_blocked
from tests.sql.test_races_of_accounts import erase


async def test_of_20_rotations_at_once_one_succeeds(transactions: Database) -> None:
    """Without `counter` in the WHERE of ROTATE all would."""
    async with transactions.transaction() as repositories:
        session = new_session(await new_user(repositories))
        assert await repositories.sessions.add(session, HASH)

    async def rotate() -> tuple[Session, Role] | None:
        async with transactions.transaction() as repositories:
            return await repositories.sessions.rotate(session.session_id, 0, FIRST_PARTY, NOW)

    rotated = await asyncio.gather(*(rotate() for _ in range(20)))
    assert [one for one in rotated if one] == [
        (replace(session, counter=1, refreshed_at=NOW), Role.USER)
    ]


async def test_a_sign_in_with_an_old_password_leaves_no_session_behind_the_change(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without FOR NO KEY UPDATE in INSERT the sign-in would miss the change it waited for."""
    async with transactions.transaction() as repositories:
        user_id = await new_user(repositories)

    async def sign_in() -> bool:
        async with transactions.transaction() as repositories:
            return await repositories.sessions.add(new_session(user_id), HASH)

    async with transactions.transaction() as repositories:
        assert await repositories.users.replace_password_hash(user_id, HASH, "$new$")
        signing_in = await until_blocked(database, sign_in())
    assert await signing_in is False


async def test_of_20_sessions_begun_at_once_as_many_stay_open_as_may(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without FOR NO KEY UPDATE in INSERT some would not see the others, and more would stay."""
    async with transactions.transaction() as repositories:
        user_id = await new_user(repositories)

    async def sign_in() -> UUID:
        async with transactions.transaction() as repositories:
            session = new_session(user_id)
            assert await repositories.sessions.add(session, HASH)
            await repositories.sessions.end_surplus(user_id, session.session_id, 5, NOW)
        return session.session_id

    await asyncio.gather(*(sign_in() for _ in range(20)))
    assert await database.fetchval("SELECT count(*) FROM sessions WHERE ended_at IS NULL") == 5


async def test_a_session_of_a_machine_whose_clock_is_slow_does_not_end_as_it_begins(
    transactions: Database,
) -> None:
    async with transactions.transaction() as repositories:
        user_id = await new_user(repositories)
        sessions = [new_session(user_id) for _ in range(3)]
        sessions[2] = replace(sessions[2], created_at=NOW - timedelta(minutes=1))
        for session in sessions:
            assert await repositories.sessions.add(session, HASH)
        new = sessions[2].session_id
        assert await repositories.sessions.end_surplus(user_id, new, 2, NOW) == [
            sessions[0].session_id
        ]


async def test_of_20_keys_of_a_user_at_once_as_many_are_kept_as_may(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without FOR NO KEY UPDATE in HOLD some would not see the others, and more would stay."""
    async with transactions.transaction() as repositories:
        user_id = await new_user(repositories)

    async def claim(number: int) -> None:
        key = IdempotencyKey(str(user_id), f"key {number}", b"fingerprint", user_id)
        async with transactions.transaction() as repositories:
            keys = repositories.idempotency_keys
            assert await repositories.users.hold(user_id)
            assert await keys.claim(key, NOW, NOW - LIFE)
            await keys.delete_surplus(key, 5)

    await asyncio.gather(*map(claim, range(20)))
    assert await database.fetchval("SELECT count(*) FROM idempotency_keys") == 5


async def test_no_key_is_claimed_of_an_account_that_is_being_erased(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without the lock in HOLD it is, and what is kept under it outlives the account."""
    async with transactions.transaction() as repositories:
        user_id = await new_user(repositories)

    async def lock() -> bool:
        async with transactions.transaction() as repositories:
            return await repositories.users.hold(user_id) is not None

    async with transactions.transaction() as repositories:
        await erase(repositories, user_id)
        locking = await until_blocked(database, lock())
    assert not await locking
    assert not await lock()


@pytest.mark.parametrize(
    "change",
    [
        {"own_scopes": frozenset({Scope.REFERRALS_READ})},
        {"own_scopes": frozenset(), "grants": frozenset()},
        {"own_scopes": OF_CLIENTS, "grants": frozenset()},
        None,
    ],
    ids=["fewer scopes", "nothing", "no grant", "deleted"],
)
async def test_a_client_that_loses_what_it_asks_for_gets_no_session(
    transactions: Database, database: asyncpg.Connection, change: dict[str, Any] | None
) -> None:
    """Without FOR SHARE, and each of the conditions, in INSERT_OF_CLIENT it would."""
    client = Client(
        client_id="shop",
        name="Shop",
        secret_hash=b"x",
        redirect_uris=(),
        scopes=frozenset(),
        own_scopes=OF_CLIENTS,
    ).completed()
    session = replace(new_session(uuid7()), user_id=None, client_id="shop", scopes=OF_CLIENTS)

    async def sign_in() -> bool:
        async with transactions.transaction() as repositories:
            return await repositories.sessions.add_of_client(session)

    async with transactions.transaction() as repositories:
        await repositories.oauth_clients.add(client, NOW)
    async with transactions.transaction() as repositories:
        if change is None:
            assert await repositories.oauth_clients.delete("shop", NOW)
        else:
            await repositories.oauth_clients.update(replace(client, **change))
        signing_in = await until_blocked(database, sign_in())
    assert await signing_in is False


async def test_a_repeated_request_waits_for_the_first_and_finds_its_answer(
    transactions: Database, database: asyncpg.Connection
) -> None:
    key, answer = IdempotencyKey("scope", "key", b"fingerprint"), Answer(201, b"{}")

    async def claim() -> tuple[bool, tuple[bytes, Answer] | None]:
        async with transactions.transaction() as repositories:
            claimed = await repositories.idempotency_keys.claim(key, NOW, NOW - LIFE)
            return claimed, await repositories.idempotency_keys.find(key, NOW - LIFE)

    async with transactions.transaction() as repositories:
        assert await repositories.idempotency_keys.claim(key, NOW, NOW - LIFE)
        repeated = await until_blocked(database, claim())
        await repositories.idempotency_keys.keep(key, answer, None)
    assert await repeated == (False, (b"fingerprint", answer))
