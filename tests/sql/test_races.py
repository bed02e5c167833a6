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
from typing import TypeVar
from uuid import UUID

import asyncpg
import pytest
from uuid6 import uuid7

from service.database import Database, Repositories, TransactionConflict, retried
from service.domain.claims import Claim
from service.domain.errors import (
    DatabaseUnavailable,
    EmailTaken,
    LiveReferralCodeExists,
    ReferralCodeTaken,
    ReferralCodeUnusable,
)
from service.domain.idempotency import Answer, IdempotencyKey
from service.domain.identities import Identity
from service.domain.mails import MailToken, Share, TokenPurpose
from service.domain.referral_codes import (
    ReferralCode,
    ReferralCodeWish,
    TakenReferralCode,
    issue_referral_code,
)
from service.domain.sessions import FIRST_PARTY, Session
from service.domain.users import Role, parse_email
from service.use_cases.forgetting import CODE_KEY
from tests.conftest import Servers
from tests.factories import new_email

T = TypeVar("T")
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
LIFE = timedelta(days=7)
HASH = "$a hash$"


class Undone(Exception):
    """Has a transaction rolled back."""


async def new_user(repositories: Repositories) -> UUID:
    user_id = uuid7()
    await repositories.users.add(user_id, parse_email(new_email()), HASH, Role.USER, NOW)
    return user_id


async def new_code(transactions: Database, max_uses: int | None = None) -> ReferralCode:
    """Store a user with a code."""
    async with transactions.transaction() as repositories:
        wish = ReferralCodeWish(expires_at=NOW + LIFE, max_uses=max_uses)
        code = issue_referral_code(await new_user(repositories), wish, NOW)
        await repositories.referral_codes.add(code, CODE_KEY)
    return code


async def take(transactions: Database, code: ReferralCode) -> TakenReferralCode | None:
    async with transactions.transaction() as repositories:
        return await repositories.referral_codes.take(code.code, NOW)


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
    taken = await repositories.referral_codes.take(code.code, NOW)
    assert taken is not None
    await refer_to(repositories, user_id, taken.owner_id, user_id.bytes)
    await repositories.referral_codes.count_use(taken.referral_code_id, slot)


async def delete(transactions: Database, code: ReferralCode) -> bool:
    async with transactions.transaction() as repositories:
        ended = await repositories.referral_codes.end_of_owner(code.owner_id, NOW, CODE_KEY)
        return ended is not None and ended[0]


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
    async with transactions.reading() as repositories:
        assert await repositories.referral_codes.find_live(code.owner_id, NOW) is None


async def test_a_use_that_is_rolled_back_is_there_for_the_next(
    transactions: Database, database: asyncpg.Connection
) -> None:
    code = await new_code(transactions, max_uses=1)
    with suppress(ZeroDivisionError):
        async with transactions.transaction() as repositories:
            assert await repositories.referral_codes.take(code.code, NOW)
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
    async with transactions.reading() as repositories:
        found = await repositories.referral_codes.find_live(code.owner_id, NOW)
    assert found == replace(code, uses=2)


async def test_uses_of_one_slot_are_all_counted(transactions: Database) -> None:
    """Without ON CONFLICT, or with a value read before, some would fail or be lost."""
    code = await new_code(transactions)

    async def use() -> None:
        async with transactions.transaction() as repositories:
            await refer(repositories, code, slot=0)

    await asyncio.gather(*(use() for _ in range(20)))
    async with transactions.reading() as repositories:
        found = await repositories.referral_codes.find_live(code.owner_id, NOW)
    assert found == replace(code, uses=20)


@pytest.mark.parametrize("max_uses", [None, 5], ids=["unlimited", "limited"])
async def test_a_deletion_waits_for_an_open_registration(
    transactions: Database, database: asyncpg.Connection, max_uses: int | None
) -> None:
    """Without FOR SHARE the code would be gone before the registration with it is there."""
    code = await new_code(transactions, max_uses)
    async with transactions.transaction() as repositories:
        assert await repositories.referral_codes.take(code.code, NOW)
        deletion = await until_blocked(database, delete(transactions, code))
    assert await deletion
    assert await take(transactions, code) is None


async def test_a_deletion_finds_the_code_however_often_it_is_replaced(
    transactions: Database,
) -> None:
    """There is one at each instant, because the deletions are rolled back; but the one that a
    deletion sees may have been replaced when it gets to it, and so again and again."""
    code = await new_code(transactions)
    wish = ReferralCodeWish(expires_at=NOW + LIFE)
    deletions = 0

    async def replace_it() -> None:
        while deletions < 150:
            with suppress(LiveReferralCodeExists):
                async with transactions.reading() as repositories:
                    other = issue_referral_code(code.owner_id, wish, NOW)
                    await repositories.referral_codes.add(other, CODE_KEY, replacing=True)

    async def delete_it() -> None:
        nonlocal deletions
        while deletions < 150:
            deletions += 1
            with suppress(Undone):
                async with transactions.transaction() as repositories:
                    assert await repositories.referral_codes.end_of_owner(
                        code.owner_id, NOW, CODE_KEY
                    )
                    raise Undone

    await asyncio.gather(delete_it(), *(replace_it() for _ in range(3)))


@pytest.mark.parametrize("max_uses", [None, 5], ids=["unlimited", "limited"])
async def test_a_registration_that_waits_for_a_deletion_finds_no_code(
    transactions: Database, database: asyncpg.Connection, max_uses: int | None
) -> None:
    code = await new_code(transactions, max_uses)
    async with transactions.transaction() as repositories:
        ended = await repositories.referral_codes.end_of_owner(code.owner_id, NOW, CODE_KEY)
        assert ended is not None
        assert ended[0]
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
        assert (await codes.take(code.code, at) is not None) is lives
        ended = await codes.end_of_owner(code.owner_id, at, CODE_KEY)
        assert (ended is not None and ended[0]) is lives


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
    async with transactions.reading() as repositories:
        assert await repositories.referral_codes.find_live(disabled.owner_id, NOW) == disabled
    async with transactions.transaction() as repositories:
        await repositories.users.set_disabled(disabled.owner_id, None)
    assert await take(transactions, disabled) is not None


async def test_of_20_codes_of_one_owner_at_once_one_is_stored(transactions: Database) -> None:
    """Without the index referral_codes_one_live_per_owner all would be."""
    async with transactions.transaction() as repositories:
        owner_id = await new_user(repositories)

    async def add() -> None:
        code = issue_referral_code(owner_id, ReferralCodeWish(expires_in_days=1), NOW)
        async with transactions.transaction() as repositories:
            await repositories.referral_codes.add(code, CODE_KEY)

    results = await asyncio.gather(*(add() for _ in range(20)), return_exceptions=True)
    assert results.count(None) == 1
    assert sum(isinstance(result, LiveReferralCodeExists) for result in results) == 19


async def test_of_20_owners_of_one_chosen_code_at_once_one_has_it(transactions: Database) -> None:
    """Without the index referral_codes_live_code_unique all would have it."""

    async def add() -> None:
        wish = ReferralCodeWish(expires_in_days=1, code="SUMMER")
        async with transactions.transaction() as repositories:
            code = issue_referral_code(await new_user(repositories), wish, NOW)
            await repositories.referral_codes.add(code, CODE_KEY)

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
    async with transactions.reading() as repositories:
        with pytest.raises(ReferralCodeUnusable):
            await refer_to(repositories, second, code.owner_id, b"hash")


async def test_a_violation_that_nobody_foresaw_is_no_polite_answer(transactions: Database) -> None:
    async with transactions.reading() as repositories:
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
    """Without FOR SHARE in the INSERT the sign-in would not see the change it comes behind."""
    async with transactions.transaction() as repositories:
        user_id = await new_user(repositories)

    async def sign_in() -> bool:
        async with transactions.transaction() as repositories:
            return await repositories.sessions.add(new_session(user_id), HASH)

    async with transactions.transaction() as repositories:
        assert await repositories.users.replace_password_hash(user_id, HASH, "$new$")
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
                await repositories.referral_codes.lock_owner(first)
                if not conflicts:
                    await both_hold_one.wait()
                await repositories.referral_codes.lock_owner(second)
        except TransactionConflict as conflict:
            conflicts.append(conflict)
            raise

    one, other = (code.owner_id for code in codes)
    await asyncio.gather(lock(one, other), lock(other, one))
    assert len(conflicts) == 1


HOLD_A_LOCK = """
import asyncio, sys
from uuid import UUID
from service import database

database.LIMITS["idle_in_transaction_session_timeout"] = "500ms"

async def main(url, owner_id):
    async with database.connect(url, 1) as postgresql:
        async with postgresql.transaction() as repositories:
            await repositories.referral_codes.lock_owner(UUID(owner_id))
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
            await repositories.referral_codes.lock_owner(owner_id)
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
        async with transactions.reading() as repositories:
            return await repositories.mailboxes.count(b"a mailbox", uuid7(), share, NOW)

    assert sum(await asyncio.gather(*(count() for _ in range(20)))) == most


async def test_a_mail_that_is_tried_again_counts_once(transactions: Database) -> None:
    """Without `job_id <> $2` in COUNT the third worker that is killed with it loses it."""
    job_id = uuid7()
    async with transactions.reading() as repositories:
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
    """Without FOR KEY SHARE in FIND_USER_ID it does, and the session outlives a new password."""
    identity = Identity(
        issuer="https://issuer.example", subject="mallory", email=None, email_verified=False
    )
    async with transactions.transaction() as repositories:
        user_id = await new_user(repositories)
        await repositories.identities.add(identity, user_id, NOW)

    async def find() -> UUID | None:
        async with transactions.transaction() as repositories:
            return await repositories.identities.find_user_id(identity)

    async with transactions.transaction() as repositories:
        await repositories.users.lock(user_id)
        await repositories.identities.delete_of_user(user_id)
        finding = await until_blocked(database, find())
    assert await finding is None
