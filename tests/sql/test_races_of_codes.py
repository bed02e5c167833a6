"""What becomes of referral codes and their names that several want at once.

Each race says what to remove from the SQL in order to see it lost.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

import asyncpg
import pytest
from uuid6 import uuid7

from service.domain.emails import parse_email
from service.domain.errors import InvalidToken, LiveReferralCodeExists, ReferralCodeTaken
from service.domain.referral_codes import NewReferralCode, issue_referral_code
from service.domain.users import LockedUser
from service.postgresql.database import Database, Repositories
from service.use_cases.cache_invalidation import CODE_KEY
from service.use_cases.locks import end_code, end_code_and_lock
from tests.factories import new_email
from tests.sql.racing import HASH, LIFE, NOW, Undone, delete, new_code, new_user, until_blocked


@pytest.mark.parametrize("write", ["add", "delete", "change", "use up"])
async def test_what_a_write_makes_old_is_under_the_email_address_of_its_commit(
    transactions: Database, database: asyncpg.Connection, write: str
) -> None:
    """The lock on the owner: without it the old address would be forgotten, and under the new one
    look-ups would give the old code."""
    code = await new_code(transactions, max_uses=1)
    if write == "add":
        await delete(transactions, code)
    new = parse_email(new_email())

    async def written() -> str | None:
        async with transactions.transaction() as repositories:
            codes = repositories.referral_codes
            if write == "add":
                again = replace(code, referral_code_id=uuid7())
                return (await codes.add(again, CODE_KEY, confirmed_only=False))[0]
            if write == "delete":
                return (await end_code(repositories, code.owner_id, NOW)).owner_email_key
            if write == "change":
                return await codes.change(replace(code, max_uses=2), NOW)
            taken = await repositories.referral_code_uses.take(code.code, NOW, confirmed_only=False)
            return taken.owner_email_key if taken else None

    async with transactions.transaction() as repositories:
        await repositories.users.lock(code.owner_id)
        await repositories.users.change_email(code.owner_id, new, NOW)
        writing = await until_blocked(database, written())
    assert await writing == new.key


async def test_a_replacement_and_the_end_of_the_account_do_not_wait_for_each_other(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without `hold` in end_code_and_lock they do: each holds what the other locks next."""
    code = await new_code(transactions)
    other = issue_referral_code(code.owner_id, NewReferralCode(expires_in_days=1), NOW)

    async def end() -> LockedUser | None:
        async with transactions.transaction() as repositories:
            return await end_code_and_lock(repositories, code.owner_id, NOW)

    async with transactions.transaction() as repositories:
        await repositories.users.hold(code.owner_id)
        ending = await until_blocked(database, end())
        await repositories.referral_codes.add(other, CODE_KEY, confirmed_only=False, replacing=True)
    assert await ending is not None
    async with transactions.autocommit() as repositories:
        assert await repositories.referral_codes.find_live(code.owner_id, NOW) is None


# Names.

# As in the last release whose names had no owners.
OLD_ADD = """
    WITH ended AS (
        UPDATE referral_codes
           SET ended_at = LEAST(expires_at, $4)
         WHERE (owner_id = $2 OR code = $3)
           AND ended_at IS NULL
           AND (expires_at <= $4 OR ($9 AND owner_id = $2))
        RETURNING expires_at > $4 AS was_live
    ), added AS (
        INSERT INTO referral_codes
               (referral_code_id, owner_id, code, created_at, expires_at, max_uses)
        SELECT $1, $2, $3, $4, $5, $6
          FROM (SELECT count(*) FROM ended) AS room
        RETURNING owner_id, created_at
    ), planned AS (
        INSERT INTO jobs (job_id, kind, payload, created_at)
        SELECT $7, 'forget', jsonb_build_array($8::text || u.email_key), a.created_at
          FROM added a
          JOIN users u ON u.user_id = a.owner_id
         WHERE u.email_key IS NOT NULL
    )
    SELECT email_key, (SELECT COALESCE(bool_or(was_live), false) FROM ended) AS replaced
      FROM users
     WHERE user_id = $2
"""


async def add_as_of_old(connection: asyncpg.Connection, owner_id: UUID, code: str) -> None:
    await connection.execute(
        OLD_ADD, uuid7(), owner_id, code, NOW, NOW + LIFE, None, uuid7(), CODE_KEY, True
    )


async def named(repositories: Repositories, owner_id: UUID, name: str) -> None:
    wish = NewReferralCode(expires_in_days=1, code=name)
    code = issue_referral_code(owner_id, wish, NOW)
    await repositories.referral_codes.add(code, CODE_KEY, confirmed_only=False, replacing=True)


async def test_the_release_before_is_bound_by_names_too(
    transactions: Database, database: asyncpg.Connection
) -> None:
    async with transactions.transaction() as repositories:
        anna, bert = [await new_user(repositories) for _ in range(2)]
        await named(repositories, anna, "LOOT-1")
        await named(repositories, anna, "OTHER-1")
    for name in ("LOOT-1", "L00T-I", "1OOT-L"):
        with pytest.raises(asyncpg.UniqueViolationError) as caught:
            await add_as_of_old(database, bert, name)
        # By which its callers know that the code is taken.
        assert caught.value.constraint_name == "referral_codes_live_code_unique"
    assert await database.fetchval("SELECT count(*) FROM referral_codes") == 2
    await add_as_of_old(database, bert, "BERTS-1")
    await add_as_of_old(database, bert, "BERTS-2")
    await add_as_of_old(database, anna, "L0OT-1")
    async with transactions.autocommit() as repositories:
        for name in ("BERTS-1", "BERTS-2"):
            with pytest.raises(ReferralCodeTaken):
                await named(repositories, anna, name)


@pytest.mark.parametrize("kept", [False, True], ids=["rolled back", "committed"])
async def test_who_comes_second_to_a_name_waits_for_the_first(
    transactions: Database, database: asyncpg.Connection, kept: bool
) -> None:
    """The primary key of referral_code_names. The trigger's second look has a snapshot of its own:
    with the first one's the name would have no owner."""
    async with transactions.transaction() as repositories:
        first, second = [await new_user(repositories) for _ in range(2)]

    async def name_it() -> None:
        async with transactions.transaction() as repositories:
            await named(repositories, second, "SPR1NG")

    with suppress(Undone):
        async with transactions.transaction() as repositories:
            await named(repositories, first, "SPRING")
            naming = await until_blocked(database, name_it())
            if not kept:
                raise Undone
    if kept:
        with pytest.raises(ReferralCodeTaken):
            await naming
    else:
        await naming
    [name] = await database.fetch("SELECT name, owner_id FROM referral_code_names")
    assert tuple(name) == ("SPR1NG", first if kept else second)


async def test_a_name_of_the_own_is_no_conflict_at_the_same_instant(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """The owner's two requests with names that look alike: one live code, and no refusal for the
    name."""
    async with transactions.transaction() as repositories:
        owner = await new_user(repositories)

    async def name_it(name: str) -> None:
        async with transactions.transaction() as repositories:
            await named(repositories, owner, name)

    results = await asyncio.gather(
        *(name_it(name) for name in ("OIL-1", "0IL-1", "O1L-1", "OI1-I") * 4),
        return_exceptions=True,
    )
    assert all(result is None or isinstance(result, LiveReferralCodeExists) for result in results)
    assert None in results
    assert await database.fetchval("SELECT count(*) FROM referral_code_names") == 1


async def test_a_code_that_waits_for_the_erasure_of_its_owner_is_not_made(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without FOR KEY SHARE in ADD it would be, and its name would belong to nobody."""
    async with transactions.transaction() as repositories:
        owner = await new_user(repositories)

    async def name_it() -> None:
        async with transactions.transaction() as repositories:
            await named(repositories, owner, "SPRING")

    async with transactions.transaction() as repositories:
        await repositories.users.lock(owner)
        naming = await until_blocked(database, name_it())
        await repositories.users.erase(owner, HASH, NOW)
        await repositories.referral_codes.disown_names(owner)
    with pytest.raises(InvalidToken):
        await naming
    assert await database.fetchval("SELECT count(*) FROM referral_codes") == 0
    assert await database.fetchval("SELECT count(*) FROM referral_code_names") == 0


async def test_only_the_codes_of_confirmed_owners_count_where_that_is_asked(
    transactions: Database,
) -> None:
    for max_uses in (None, 5):
        code = await new_code(transactions, max_uses)
        async with transactions.transaction() as repositories:
            codes, uses = repositories.referral_codes, repositories.referral_code_uses
            users = repositories.users
            email_key = await users.find_email_key(code.owner_id)
            assert email_key is not None
            for confirmed in (False, True):
                if confirmed:
                    await users.confirm_email(code.owner_id, email_key, NOW)
                for confirmed_only in (False, True):
                    counts = confirmed or not confirmed_only
                    found = await uses.find_usable(code.code, NOW, confirmed_only=confirmed_only)
                    assert found == (code.referral_code_id if counts else None)
                    taken = await uses.take(code.code, NOW, confirmed_only=confirmed_only)
                    assert (taken is not None) is counts
                    live = await codes.find_live_by_emails(
                        [email_key], NOW, confirmed_only=confirmed_only
                    )
                    assert (email_key in live) is counts


async def test_of_20_codes_of_one_owner_at_once_one_is_stored(transactions: Database) -> None:
    """Without the index referral_codes_one_live_per_owner all would be."""
    async with transactions.transaction() as repositories:
        owner_id = await new_user(repositories)

    async def add() -> None:
        code = issue_referral_code(owner_id, NewReferralCode(expires_in_days=1), NOW)
        async with transactions.transaction() as repositories:
            await repositories.referral_codes.add(code, CODE_KEY, confirmed_only=False)

    results = await asyncio.gather(*(add() for _ in range(20)), return_exceptions=True)
    assert results.count(None) == 1
    assert sum(isinstance(result, LiveReferralCodeExists) for result in results) == 19


async def test_of_20_owners_of_one_chosen_code_at_once_one_has_it(transactions: Database) -> None:
    """Without the index referral_codes_live_code_unique all would have it."""

    async def add() -> None:
        wish = NewReferralCode(expires_in_days=1, code="SUMMER")
        async with transactions.transaction() as repositories:
            code = issue_referral_code(await new_user(repositories), wish, NOW)
            await repositories.referral_codes.add(code, CODE_KEY, confirmed_only=False)

    results = await asyncio.gather(*(add() for _ in range(20)), return_exceptions=True)
    assert results.count(None) == 1
    assert sum(isinstance(result, ReferralCodeTaken) for result in results) == 19
