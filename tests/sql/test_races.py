"""What repositories do beside one another, in transactions of their own.

Each race says what to remove from the SQL in order to see it lost.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import pytest
from uuid6 import uuid7

from service.domain.claims import Claim
from service.domain.emails import parse_email
from service.domain.errors import (
    DatabaseUnavailable,
    EmailTaken,
    InvalidToken,
    LiveReferralCodeExists,
    ReferralCodeTaken,
    ReferralCodeUnusable,
)
from service.domain.idempotency import IdempotencyKey
from service.domain.identities import Identity
from service.domain.mails import MailToken, Share, TokenPurpose
from service.domain.oauth import Client
from service.domain.referral_codes import (
    NewReferralCode,
    ReferralCode,
    TakenReferralCode,
    issue_referral_code,
)
from service.domain.scopes import OF_CLIENTS, Scope
from service.domain.security_events import Origin
from service.domain.sessions import FIRST_PARTY, Session
from service.domain.users import LockedUser, Role
from service.postgresql.database import Database, Repositories, TransactionConflict, retried
from service.repositories.idempotency_keys import Answer
from service.use_cases.cache_invalidation import CODE_KEY
from service.use_cases.locks import end_code, end_code_and_lock, hold_user_of
from tests.conftest import Servers
from tests.factories import new_email

T = TypeVar("T")
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
LIFE = timedelta(days=7)
HASH = "$a hash$"
MALLORY = Identity(
    issuer="https://issuer.example", subject="mallory", email=None, email_verified=False
)


class Undone(Exception):
    """Has a transaction rolled back."""


async def new_user(repositories: Repositories) -> UUID:
    user_id = uuid7()
    await repositories.users.add(user_id, parse_email(new_email()), HASH, Role.USER, NOW)
    return user_id


async def new_code(transactions: Database, max_uses: int | None = None) -> ReferralCode:
    """Store a user with a code."""
    async with transactions.transaction() as repositories:
        wish = NewReferralCode(expires_at=NOW + LIFE, max_uses=max_uses)
        code = issue_referral_code(await new_user(repositories), wish, NOW)
        await repositories.referral_codes.add(code, CODE_KEY, confirmed_only=False)
    return code


async def take(transactions: Database, code: ReferralCode) -> TakenReferralCode | None:
    async with transactions.transaction() as repositories:
        return await repositories.referral_code_uses.take(code.code, NOW, confirmed_only=False)


async def refer_to(
    repositories: Repositories,
    user_id: UUID,
    referrer_id: UUID,
    email_hash: bytes,
    mailbox_hash: bytes | None = None,
) -> Sequence[str]:
    """Store a referral; it has a mailbox of its own unless one is given."""
    return await repositories.referrals.add(
        user_id, referrer_id, "CODE", NOW, email_hash, mailbox_hash or user_id.bytes, flagged=False
    )


async def refer(repositories: Repositories, code: ReferralCode, slot: int) -> None:
    """Do all that a registration with the code does to it."""
    user_id = await new_user(repositories)
    taken = await repositories.referral_code_uses.take(code.code, NOW, confirmed_only=False)
    assert taken is not None
    await refer_to(repositories, user_id, taken.owner_id, user_id.bytes)
    await repositories.referral_code_uses.count_use(taken.referral_code_id, slot)


async def delete(transactions: Database, code: ReferralCode) -> bool:
    async with transactions.transaction() as repositories:
        return (await end_code(repositories, code.owner_id, NOW)).was_live


async def until_blocked(database: asyncpg.Connection, work: Awaitable[T]) -> "asyncio.Task[T]":
    """Start the work and return when it waits for another's lock."""
    task = asyncio.ensure_future(work)
    async with asyncio.timeout(2):
        while not await database.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database())"
        ):
            assert not task.done(), "it waits for nobody"
            await asyncio.sleep(0.005)
    return task


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


async def test_registrations_with_an_unlimited_code_wait_for_nobody(
    transactions: Database,
) -> None:
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


# Uses that are counted later: the code was live when its id was found.


async def take_by_id(
    transactions: Database, code: ReferralCode, at: datetime = NOW
) -> TakenReferralCode | None:
    async with transactions.transaction() as repositories:
        uses = repositories.referral_code_uses
        taken = await uses.take_by_id(code.referral_code_id, at)
        if taken is not None and taken.max_uses is None:
            await uses.count_use(taken.referral_code_id, slot=at.microsecond % 2)
        return taken


async def uses_of(database: asyncpg.Connection, code: ReferralCode) -> int:
    uses: int = await database.fetchval(
        "SELECT uses + coalesce((SELECT sum(uses) FROM referral_code_uses), 0)::int"
        "  FROM referral_codes WHERE referral_code_id = $1",
        code.referral_code_id,
    )
    return uses


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


async def test_confirmations_with_an_unlimited_code_wait_for_nobody(
    transactions: Database,
) -> None:
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
    with pytest.raises(TransactionConflict):
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

# As the release before names had owners has it.
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
        # By which it tells its callers that the code is taken.
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
    """Without FOR KEY SHARE in ADD it would be, and its name somebody's who is no more."""
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


async def test_of_20_accounts_of_one_email_at_once_one_is_made(transactions: Database) -> None:
    """Without the constraint users_email_unique all would be."""
    email = parse_email(new_email())

    async def add() -> None:
        async with transactions.transaction() as repositories:
            await repositories.users.add(uuid7(), email, HASH, Role.USER, NOW)

    results = await asyncio.gather(*(add() for _ in range(20)), return_exceptions=True)
    assert results.count(None) == 1
    assert sum(isinstance(result, EmailTaken) for result in results) == 19


async def test_an_email_is_referred_once_whatever_became_of_the_account(
    transactions: Database,
) -> None:
    code = await new_code(transactions)
    async with transactions.transaction() as repositories:
        first, second = [await new_user(repositories) for _ in range(2)]
        await refer_to(repositories, first, code.owner_id, b"hash")
        await repositories.users.erase(first, HASH, NOW)
    async with transactions.autocommit() as repositories:
        with pytest.raises(ReferralCodeUnusable):
            await refer_to(repositories, second, code.owner_id, b"hash")


async def test_a_violation_that_nobody_foresaw_is_no_polite_answer(transactions: Database) -> None:
    async with transactions.autocommit() as repositories:
        user_id = await new_user(repositories)
        with pytest.raises(asyncpg.CheckViolationError):
            await refer_to(repositories, user_id, user_id, b"hash")


def new_session(user_id: UUID) -> Session:
    return Session(
        session_id=uuid7(),
        user_id=user_id,
        counter=0,
        user_agent=None,
        created_at=NOW,
        refreshed_at=NOW,
        expires_at=NOW + LIFE,
    )


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
    """Without FOR NO KEY UPDATE in INSERT the sign-in would not see the change it comes behind."""
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


async def test_a_transaction_that_deadlocks_is_tried_again(transactions: Database) -> None:
    """PostgreSQL ends one of two that wait for each other; both must end well."""
    codes = [await new_code(transactions) for _ in range(2)]
    both_hold_one = asyncio.Barrier(2)
    conflicts: list[TransactionConflict] = []

    @retried
    async def lock(first: UUID, second: UUID) -> None:
        try:
            async with transactions.transaction() as repositories:
                await repositories.users.hold(first)
                if not conflicts:
                    await both_hold_one.wait()
                await repositories.users.hold(second)
        except TransactionConflict as conflict:
            conflicts.append(conflict)
            raise

    one, other = (code.owner_id for code in codes)
    await asyncio.gather(lock(one, other), lock(other, one))
    assert len(conflicts) == 1


HOLD_A_LOCK = """
import asyncio, sys
from uuid import UUID
from service.postgresql import database

database.LIMITS["idle_in_transaction_session_timeout"] = "500ms"

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
        raise TransactionConflict

    with pytest.raises(DatabaseUnavailable):
        await lose()
    assert tries == 4


async def erase(repositories: Repositories, user_id: UUID) -> None:
    await repositories.users.lock(user_id)
    assert await repositories.users.erase(user_id, HASH, NOW)
    await repositories.mail_tokens.delete_of_user(user_id)
    await repositories.enrichments.delete_of_user(user_id)


async def test_no_token_is_stored_of_an_account_that_is_being_erased(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without FOR SHARE in INSERT it is, and the e-mail in it stays."""
    async with transactions.transaction() as repositories:
        user_id = await new_user(repositories)
    token = MailToken(
        token_hash=b"x" * 32,
        purpose=TokenPurpose.RESET_PASSWORD,
        user_id=user_id,
        email=parse_email("anna@example.com"),
        created_at=NOW,
        expires_at=NOW + LIFE,
    )

    async def add() -> bool:
        async with transactions.transaction() as repositories:
            return await repositories.mail_tokens.add(token)

    async with transactions.transaction() as repositories:
        await erase(repositories, user_id)
        adding = await until_blocked(database, add())
    assert not await adding
    assert not await add()  # nor afterwards: without the condition in INSERT it is
    assert await database.fetchval("SELECT count(*) FROM mail_tokens") == 0


async def test_a_failed_sign_in_to_an_account_that_is_being_erased_is_nobodys(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without FOR KEY SHARE in INSERT_FAILED_SIGN_IN it is stored for the account, and stays."""
    email = parse_email(new_email())
    user_id = uuid7()
    async with transactions.transaction() as repositories:
        await repositories.users.add(user_id, email, HASH, Role.USER, NOW)

    async def fail() -> UUID | None:
        async with transactions.transaction() as repositories:
            return await repositories.security_events.add_failed_sign_in(email.key, Origin(), NOW)

    assert await fail() == user_id
    async with transactions.transaction() as repositories:
        await erase(repositories, user_id)
        await repositories.security_events.delete_of_user(user_id)
        failing = await until_blocked(database, fail())
    assert await failing is None


async def new_claim(repositories: Repositories, email: str) -> tuple[UUID, MailToken]:
    """Store a claim with a token that was mailed."""
    claim = Claim(
        claim_id=uuid7(),
        email=parse_email(email),
        password_hash=HASH,
        identity=None,
        referral_code_id=None,
        created_at=NOW,
        expires_at=NOW + LIFE,
    )
    await repositories.claims.add(claim)
    return claim.claim_id, token_of(claim)


def token_of(claim: Claim) -> MailToken:
    return MailToken(
        token_hash=uuid7().bytes,
        purpose=TokenPurpose.CONFIRM_EMAIL,
        claim_id=claim.claim_id,
        email=claim.email,
        created_at=NOW,
        expires_at=NOW + LIFE,
    )


async def test_of_two_confirmations_of_one_address_the_second_waits_until_the_first_is_done(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without FOR UPDATE in LOCK_FOR_CONFIRMATION it goes on, and each waits for the other."""
    async with transactions.transaction() as repositories:
        tokens = [(await new_claim(repositories, "anna@example.com"))[1] for _ in range(2)]
        other = (await new_claim(repositories, "bert@example.com"))[1]
        for token in (*tokens, other):
            assert await repositories.mail_tokens.add(token)

    async def take(token: MailToken) -> MailToken | None:
        async with transactions.transaction() as repositories:
            await repositories.claims.lock_for_confirmation(token.token_hash)
            return await repositories.mail_tokens.take(token.token_hash, [token.purpose], NOW)

    async with transactions.transaction() as repositories:
        await repositories.claims.lock_for_confirmation(tokens[0].token_hash)
        waiting = await until_blocked(database, take(tokens[1]))
        assert await take(other) is not None  # another address' waits for nobody
        await repositories.claims.delete_of_email("anna@example.com")
    assert await waiting is None


async def test_no_token_is_stored_of_a_claim_that_is_being_confirmed(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without FOR KEY SHARE in INSERT_OF_CLAIM its foreign key is violated, and the job fails."""
    async with transactions.transaction() as repositories:
        claim_id, token = await new_claim(repositories, "anna@example.com")

    async def add() -> bool:
        async with transactions.transaction() as repositories:
            return await repositories.mail_tokens.add(token)

    async with transactions.transaction() as repositories:
        await repositories.claims.delete(claim_id)
        adding = await until_blocked(database, add())
    assert not await adding
    assert not await add()


@pytest.mark.parametrize(
    ("share", "most"), [(Share.OTHER, 2), (Share.RESET, 3), (Share.NOTICE, 20)]
)
async def test_of_20_mails_to_a_mailbox_at_once_no_more_are_sent_than_one_after_the_other(
    transactions: Database, share: Share, most: int
) -> None:
    """Without ON CONFLICT DO UPDATE … WHERE, but with a look before it, they would be."""

    async def count() -> bool:
        async with transactions.autocommit() as repositories:
            return await repositories.mailboxes.count(b"a mailbox", uuid7(), share, NOW)

    assert sum(await asyncio.gather(*(count() for _ in range(20)))) == most


async def test_a_mail_that_is_tried_again_counts_once(transactions: Database) -> None:
    """Without `job_id <> $2` in COUNT the third worker that is killed with it loses it."""
    job_id = uuid7()
    async with transactions.autocommit() as repositories:
        mailboxes = repositories.mailboxes
        for minute in range(5):
            at = NOW + timedelta(minutes=minute)
            assert await mailboxes.count(b"a mailbox", job_id, Share.OTHER, at)
        assert await mailboxes.count(b"a mailbox", uuid7(), Share.OTHER, NOW)
        assert not await mailboxes.count(b"a mailbox", uuid7(), Share.OTHER, NOW)
        assert await mailboxes.count(b"a mailbox", job_id, Share.OTHER, NOW)
        await mailboxes.take_back(b"a mailbox", job_id)
        assert await mailboxes.count(b"a mailbox", uuid7(), Share.OTHER, NOW)
        assert not await mailboxes.count(b"a mailbox", job_id, Share.OTHER, NOW)


async def test_of_two_referrals_of_one_mailbox_at_once_one_is_without_a_flag(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without the index referrals_one_unflagged_of_a_mailbox both are."""
    async with transactions.transaction() as repositories:
        referrer_id, another = [await new_user(repositories) for _ in range(2)]

    async def add(repositories: Repositories, referrer_id: UUID) -> Sequence[str]:
        user_id = await new_user(repositories)
        return await refer_to(repositories, user_id, referrer_id, user_id.bytes, b"a mailbox")

    async def add_alone(referrer_id: UUID) -> Sequence[str]:
        async with transactions.transaction() as repositories:
            return await add(repositories, referrer_id)

    async with transactions.transaction() as repositories:
        assert await add(repositories, referrer_id) == []
        adding = await until_blocked(database, add_alone(referrer_id))
        assert await add_alone(another) == []  # with whom it is the first
    assert await adding == ["self-referral"]


async def test_an_identity_that_is_being_removed_signs_nobody_in(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without HOLD in hold_user_of it does, and the session outlives a new password."""
    async with transactions.transaction() as repositories:
        user_id = await new_user(repositories)
        await repositories.identities.add(MALLORY, user_id, NOW)

    async def find() -> UUID | None:
        async with transactions.transaction() as repositories:
            return await hold_user_of(repositories, MALLORY)

    async with transactions.transaction() as repositories:
        await repositories.users.lock(user_id)
        await repositories.identities.delete_of_user(user_id)
        finding = await until_blocked(database, find())
    assert await finding is None


async def test_a_sign_in_and_the_end_of_its_identity_do_not_wait_for_each_other(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """With the identity locked before its user they do, and other requests for connections."""
    async with transactions.transaction() as repositories:
        user_id = await new_user(repositories)
        await repositories.identities.add(MALLORY, user_id, NOW)

    async def sign_in() -> UUID | None:
        async with transactions.transaction() as repositories:
            found = await hold_user_of(repositories, MALLORY)
            if found is not None:
                await repositories.users.lock(found)
            return found

    async with transactions.transaction() as repositories:
        await repositories.users.lock(user_id)
        signing_in = await until_blocked(database, sign_in())
        await repositories.identities.delete_of_user(user_id)
    assert await signing_in is None
