"""What uses of a referral code do beside one another and beside its end.

Each race says what to remove from the SQL in order to see it lost.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

import asyncpg
import pytest
from uuid6 import uuid7

from service.domain.errors import LiveReferralCodeExists
from service.domain.referral_codes import NewReferralCode, ReferralCode, issue_referral_code
from service.postgresql.database import Database, TryAgain
from service.use_cases.cache_invalidation import CODE_KEY
from service.use_cases.locks import end_code
from tests.sql.racing import (
    HASH,
    LIFE,
    NOW,
    Undone,
    delete,
    new_code,
    refer,
    take,
    take_by_id,
    until_blocked,
    uses_of,
)


async def test_of_20_takes_at_once_max_uses_succeed(transactions: Database) -> None:
    """Without the WHERE of the UPDATE in TAKE, or with a SELECT before it, more would."""
    code = await new_code(transactions, max_uses=5)
    taken = await asyncio.gather(*(take(transactions, code) for _ in range(20)))
    got = [one for one in taken if one is not None]
    assert len(got) == 5
    assert [one.used_up for one in got].count(True) == 1
    assert {one.referral_code_id for one in got} == {code.referral_code_id}


async def test_a_used_up_code_is_ended_with_its_last_use(
    transactions: Database, database: asyncpg.Connection
) -> None:
    code = await new_code(transactions, max_uses=2)
    for used_up in (False, True):
        taken = await take(transactions, code)
        assert taken is not None
        assert taken.used_up is used_up
    [row] = await database.fetch("SELECT uses, max_uses, ended_at FROM referral_codes")
    assert tuple(row) == (2, 2, NOW)
    async with transactions.autocommit() as repositories:
        assert await repositories.referral_codes.find_live(code.owner_id, NOW) is None


async def test_a_use_that_is_rolled_back_is_there_for_the_next(
    transactions: Database, database: asyncpg.Connection
) -> None:
    code = await new_code(transactions, max_uses=1)
    with suppress(ZeroDivisionError):
        async with transactions.transaction() as repositories:
            assert await repositories.referral_code_uses.take(code.code, NOW, confirmed_only=False)
            waiting = await until_blocked(database, take(transactions, code))
            raise ZeroDivisionError
    assert await waiting


async def test_registrations_with_an_unlimited_code_wait_for_nobody(transactions: Database) -> None:
    """With FOR UPDATE in place of FOR SHARE, or one counter for all, the second would wait."""
    code = await new_code(transactions)
    async with transactions.transaction() as first:
        await refer(first, code, slot=0)
        async with asyncio.timeout(1), transactions.transaction() as second:
            await refer(second, code, slot=1)
    async with transactions.autocommit() as repositories:
        found = await repositories.referral_codes.find_live(code.owner_id, NOW)
    assert found == replace(code, uses=2)


async def test_uses_of_one_slot_are_all_counted(transactions: Database) -> None:
    """Without ON CONFLICT, or with a value read before, some would fail or be lost."""
    code = await new_code(transactions)

    async def use() -> None:
        async with transactions.transaction() as repositories:
            await refer(repositories, code, slot=0)

    await asyncio.gather(*(use() for _ in range(20)))
    async with transactions.autocommit() as repositories:
        found = await repositories.referral_codes.find_live(code.owner_id, NOW)
    assert found == replace(code, uses=20)


@pytest.mark.parametrize("max_uses", [None, 5], ids=["unlimited", "limited"])
async def test_a_deletion_waits_for_an_open_registration(
    transactions: Database, database: asyncpg.Connection, max_uses: int | None
) -> None:
    """Without FOR SHARE the code would be gone before the registration with it is there."""
    code = await new_code(transactions, max_uses)
    async with transactions.transaction() as repositories:
        assert await repositories.referral_code_uses.take(code.code, NOW, confirmed_only=False)
        deletion = await until_blocked(database, delete(transactions, code))
    assert await deletion
    assert await take(transactions, code) is None


async def test_a_deletion_finds_the_code_however_often_it_is_replaced(
    transactions: Database,
) -> None:
    """There is one at each instant, because the deletions are rolled back; but the one that a
    deletion sees may have been replaced when it gets to it, and so again and again."""
    code = await new_code(transactions)
    wish = NewReferralCode(expires_at=NOW + LIFE)
    deletions = 0

    async def replace_it() -> None:
        while deletions < 150:
            with suppress(LiveReferralCodeExists):
                async with transactions.autocommit() as repositories:
                    other = issue_referral_code(code.owner_id, wish, NOW)
                    await repositories.referral_codes.add(
                        other, CODE_KEY, confirmed_only=False, replacing=True
                    )

    async def delete_it() -> None:
        nonlocal deletions
        while deletions < 150:
            deletions += 1
            with suppress(Undone):
                async with transactions.transaction() as repositories:
                    assert (await end_code(repositories, code.owner_id, NOW)).ended
                    raise Undone

    await asyncio.gather(delete_it(), *(replace_it() for _ in range(3)))


@pytest.mark.parametrize("max_uses", [None, 5], ids=["unlimited", "limited"])
async def test_a_registration_that_waits_for_a_deletion_finds_no_code(
    transactions: Database, database: asyncpg.Connection, max_uses: int | None
) -> None:
    code = await new_code(transactions, max_uses)
    async with transactions.transaction() as repositories:
        assert (await end_code(repositories, code.owner_id, NOW)).was_live
        registration = await until_blocked(database, take(transactions, code))
    assert await registration is None


@pytest.mark.parametrize("max_uses", [None, 5], ids=["unlimited", "limited"])
@pytest.mark.parametrize(
    ("at", "lives"),
    [
        pytest.param(NOW, True, id="at its creation"),
        pytest.param(NOW + LIFE - timedelta(microseconds=1), True, id="at its last instant"),
        pytest.param(NOW + LIFE, False, id="at its expiry"),
    ],
)
async def test_a_code_lives_until_its_expiry(
    transactions: Database, max_uses: int | None, at: datetime, lives: bool
) -> None:
    code = await new_code(transactions, max_uses)
    async with transactions.transaction() as repositories:
        codes = repositories.referral_codes
        assert (await codes.find_live(code.owner_id, at) is not None) is lives
        taken = await repositories.referral_code_uses.take(code.code, at, confirmed_only=False)
        assert (taken is not None) is lives
        assert (await end_code(repositories, code.owner_id, at)).was_live is lives


@pytest.mark.parametrize("max_uses", [None, 5], ids=["unlimited", "limited"])
async def test_the_code_of_a_disabled_or_erased_owner_cannot_be_taken(
    transactions: Database, max_uses: int | None
) -> None:
    disabled, erased = [await new_code(transactions, max_uses) for _ in range(2)]
    async with transactions.transaction() as repositories:
        await repositories.users.set_disabled(disabled.owner_id, NOW)
        assert await repositories.users.erase(erased.owner_id, HASH, NOW)
    assert await take(transactions, disabled) is None
    assert await take(transactions, erased) is None
    async with transactions.autocommit() as repositories:
        assert await repositories.referral_codes.find_live(disabled.owner_id, NOW) == disabled
    async with transactions.transaction() as repositories:
        await repositories.users.set_disabled(disabled.owner_id, None)
    assert await take(transactions, disabled) is not None


@pytest.mark.parametrize("dead", [False, True], ids=["live", "dead"])
async def test_of_100_confirmations_at_once_max_uses_count(
    transactions: Database, database: asyncpg.Connection, dead: bool
) -> None:
    """Without `uses < max_uses` in the UPDATE of TAKE_BY_ID the others would fail, and with a
    SELECT before it more would count."""
    code = await new_code(transactions, max_uses=10)
    if dead:
        assert await delete(transactions, code)
    taken = await asyncio.gather(*(take_by_id(transactions, code) for _ in range(100)))
    got = [one for one in taken if one is not None]
    assert len(got) == 10
    assert [one.used_up for one in got].count(True) == 1
    assert {one.owner_id for one in got} == {code.owner_id}
    row = await database.fetchrow("SELECT uses, ended_at, end_reason FROM referral_codes")
    assert row is not None
    assert tuple(row) == (10, NOW, "deleted" if dead else "used-up")


async def test_of_100_confirmations_at_once_with_an_unlimited_code_all_count(
    transactions: Database, database: asyncpg.Connection
) -> None:
    code = await new_code(transactions)
    times = [NOW + timedelta(microseconds=number) for number in range(100)]
    taken = await asyncio.gather(*(take_by_id(transactions, code, at) for at in times))
    assert all(taken)
    assert not any(one.used_up for one in taken if one)
    assert await uses_of(database, code) == 100


async def test_confirmations_with_an_unlimited_code_wait_for_nobody(transactions: Database) -> None:
    """With FOR UPDATE in place of FOR SHARE the second would wait."""
    code = await new_code(transactions)
    async with transactions.transaction() as first:
        assert await first.referral_code_uses.take_by_id(code.referral_code_id, NOW)
        async with asyncio.timeout(1):
            assert await take_by_id(transactions, code)


@pytest.mark.parametrize("max_uses", [None, 2], ids=["unlimited", "limited"])
@pytest.mark.parametrize("end", ["deleted", "replaced", "expired", "expired and ended", "disabled"])
async def test_a_code_that_has_died_since_still_counts(
    transactions: Database, database: asyncpg.Connection, max_uses: int | None, end: str
) -> None:
    code, at = await new_code(transactions, max_uses), NOW
    another = issue_referral_code(code.owner_id, NewReferralCode(expires_in_days=30), NOW)
    async with transactions.transaction() as repositories:
        codes = repositories.referral_codes
        if end == "deleted":
            await end_code(repositories, code.owner_id, NOW)
        elif end == "replaced":
            await codes.add(another, CODE_KEY, confirmed_only=False, replacing=True)
        elif end == "disabled":
            await repositories.users.set_disabled(code.owner_id, NOW)
        else:
            at = NOW + LIFE
            if end == "expired and ended":
                await end_code(repositories, code.owner_id, at)
    dead = "SELECT ended_at, end_reason FROM referral_codes WHERE referral_code_id = $1"
    before = await database.fetchrow(dead, code.referral_code_id)
    for used_up in (False, max_uses is not None):
        taken = await take_by_id(transactions, code, at)
        assert taken is not None
        assert (taken.owner_id, taken.code) == (code.owner_id, code.code)
        assert taken.used_up is used_up
    assert await uses_of(database, code) == 2
    if end == "disabled" and max_uses is not None:
        before = await database.fetchrow("SELECT $1::timestamptz, 'used-up'", NOW)
    after = await database.fetchrow(dead, code.referral_code_id)
    assert tuple(after or ()) == tuple(before or ())
    assert (await take_by_id(transactions, code, at) is None) is (max_uses is not None)


@pytest.mark.parametrize("max_uses", [None, 5], ids=["unlimited", "limited"])
async def test_a_code_of_an_erased_owner_and_one_there_never_was_count_no_more(
    transactions: Database, database: asyncpg.Connection, max_uses: int | None
) -> None:
    code = await new_code(transactions, max_uses)
    async with transactions.transaction() as repositories:
        assert await repositories.users.erase(code.owner_id, HASH, NOW)
    assert await take_by_id(transactions, code) is None
    assert await uses_of(database, code) == 0
    assert await take_by_id(transactions, replace(code, referral_code_id=uuid7())) is None


@pytest.mark.parametrize("by_id", [False, True], ids=["by code", "by id"])
async def test_a_use_that_waits_for_a_limit_begins_anew(
    transactions: Database, database: asyncpg.Connection, by_id: bool
) -> None:
    """With another try in the same transaction two of them would wait for each other."""
    code = await new_code(transactions)
    work = take_by_id if by_id else take
    async with transactions.transaction() as repositories:
        codes = repositories.referral_codes
        assert await codes.lock_live(code.owner_id, confirmed_only=False) == code.referral_code_id
        waiting = await until_blocked(database, work(transactions, code))
        await codes.change(replace(code, max_uses=1), NOW)
    with pytest.raises(TryAgain):
        await waiting
    results = await asyncio.gather(*(work(transactions, code) for _ in range(5)))
    assert sum(one is not None for one in results) == 1


async def test_a_limit_waits_for_the_uses_that_are_being_counted(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without FOR UPDATE in LOCK_LIVE it would not count them."""
    code = await new_code(transactions)

    async def limit() -> ReferralCode | None:
        async with transactions.transaction() as repositories:
            codes = repositories.referral_codes
            await codes.lock_live(code.owner_id, confirmed_only=False)
            found = await codes.find_live(code.owner_id, NOW)
            assert found is not None
            await codes.change(replace(found, max_uses=2), NOW)
            return await codes.find_live(code.owner_id, NOW)

    async with transactions.transaction() as repositories:
        await refer(repositories, code, slot=3)
        limiting = await until_blocked(database, limit())
    assert await limiting == replace(code, max_uses=2, uses=1)
    assert await database.fetchval("SELECT count(*) FROM referral_code_uses") == 0
