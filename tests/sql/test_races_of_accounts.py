"""What happens at once to an account, its claims, mails, referrals and identities.

Each race says what to remove from the SQL in order to see it lost.
"""

import asyncio
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest
from uuid6 import uuid7

from service.domain.emails import parse_email
from service.domain.errors import AlreadyReferred, EmailTaken
from service.domain.mails import MailToken, Share, TokenPurpose
from service.domain.referrals import ReferralFlag
from service.domain.security_events import Origin
from service.domain.users import Role
from service.postgresql.database import Database, Repositories
from service.repositories.referrals import MailboxJustReferred
from service.use_cases.locks import hold_user_of
from tests.factories import new_email
from tests.sql.racing import (
    HASH,
    LIFE,
    MALLORY,
    NOW,
    new_claim,
    new_code,
    new_user,
    refer_to,
    until_blocked,
)


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
        with pytest.raises(AlreadyReferred):
            await refer_to(repositories, second, code.owner_id, b"hash")


async def erase(repositories: Repositories, user_id: UUID) -> None:
    await repositories.users.lock(user_id)
    assert await repositories.users.erase(user_id, HASH, NOW)
    await repositories.mail_tokens.delete_of_user(user_id)
    await repositories.enrichments.delete_of_user(user_id)


async def test_no_token_is_stored_of_an_account_that_is_being_erased(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without FOR SHARE in INSERT it is, and the email address in it stays."""
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


@pytest.mark.parametrize("flags", [[], [ReferralFlag.VELOCITY]])
async def test_of_two_referrals_of_one_mailbox_at_once_one_is_no_self_referral(
    flags: list[ReferralFlag], transactions: Database, database: asyncpg.Connection
) -> None:
    """Without the index referrals_one_unflagged_of_a_mailbox neither is."""
    async with transactions.transaction() as repositories:
        referrer_id, another = [await new_user(repositories) for _ in range(2)]

    async def add(
        repositories: Repositories, referrer_id: UUID, flags: list[ReferralFlag] = flags
    ) -> None:
        user_id = await new_user(repositories)
        await refer_to(repositories, user_id, referrer_id, user_id.bytes, b"a mailbox", flags)

    async def add_alone(referrer_id: UUID) -> None:
        async with transactions.transaction() as repositories:
            await add(repositories, referrer_id)

    async with transactions.transaction() as repositories:
        await add(repositories, referrer_id)
        adding = await until_blocked(database, add_alone(referrer_id))
        await add_alone(another)  # with whom it is the first
        await add(repositories, referrer_id, [ReferralFlag.SELF_REFERRAL, *flags])
    with pytest.raises(MailboxJustReferred):
        await adding


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
