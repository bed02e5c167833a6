"""What races are made of: rows to race for, and waiting for a lock."""

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

import asyncpg
from uuid6 import uuid7

from service.domain.claims import Claim
from service.domain.emails import parse_email
from service.domain.identities import Identity
from service.domain.mails import MailToken, TokenPurpose
from service.domain.programmes import DEFAULT_PROGRAMME, rules_of
from service.domain.referral_codes import (
    NewReferralCode,
    ReferralCode,
    TakenReferralCode,
    issue_referral_code,
)
from service.domain.referrals import SYSTEM, NewReferral, ReferralFlag
from service.domain.sessions import Session
from service.domain.users import Role
from service.postgresql.database import Database, Repositories
from service.use_cases.cache_invalidation import CODE_KEY
from service.use_cases.decisions import Change, next_decision
from service.use_cases.locks import end_code
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
    flags: Sequence[ReferralFlag] = (),
) -> None:
    """Store a referral; it has a mailbox of its own unless one is given."""
    programme = await repositories.programmes.find(DEFAULT_PROGRAMME)
    assert programme is not None
    taken = TakenReferralCode(
        referral_code_id=user_id,
        owner_id=referrer_id,
        owner_email_key=None,
        programme_id=programme.programme_id,
        programme=programme.key,
        version=programme.version,
        is_standing_locked=False,
        code="CODE",
        max_uses=None,
        used_up=False,
    )
    new = NewReferral(
        referee_id=user_id,
        taken=taken,
        registered_at=NOW,
        made_by=SYSTEM,
        email_hash=email_hash,
        mailbox_hash=mailbox_hash or user_id.bytes,
    )
    referral = new.begin(flags, None)
    change = Change(rules=rules_of({"qualify": {"on": "signup"}}), now=NOW, made_by=SYSTEM)
    decision = next_decision(referral, change, referral.state, referral.reason)
    await repositories.referrals.add(new, referral, [decision])


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
