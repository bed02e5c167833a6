"""Registering with a referral code."""

import secrets
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.email_verification import is_disposable
from service.domain.emails import Email, fold_mailbox, hash_email, hash_mailbox
from service.domain.errors import AlreadyReferred, InvalidInput, ReferralCodeUnusable
from service.domain.events import Event
from service.domain.programmes import DEFAULT_PROGRAMME_ID, EMAIL_CONFIRMED
from service.domain.referral_codes import TakenReferralCode, normalise_code
from service.domain.referrals import SYSTEM, NewReferral, ProgrammeReferral
from service.domain.security_events import SecurityEvent
from service.postgresql.database import Repositories
from service.use_cases.cache_invalidation import code_key
from service.use_cases.shared import Shared

USE_SLOTS: Final = 16
"""How many registrations with one unlimited code can be counted at the same moment."""


async def find_code(
    shared: Shared, repositories: Repositories, code: str | None, now: datetime
) -> UUID | None:
    """Return the id of the code, if one is given; raise ReferralCodeUnusable."""
    if code is None:
        return None
    found = await repositories.referral_code_uses.find_usable(
        normalise(code), now, confirmed_only=shared.confirmation_required
    )
    if found is None:
        raise ReferralCodeUnusable
    return found


async def refer_by_code(
    shared: Shared,
    repositories: Repositories,
    user_id: UUID,
    email: Email,
    code: str,
    now: datetime,
) -> UUID:
    """Take the code and store the referral; return the referrer. Raises ReferralCodeUnusable."""
    taken = await repositories.referral_code_uses.take(
        normalise(code), now, confirmed_only=shared.confirmation_required
    )
    return await _store_referral(shared, repositories, user_id, email, taken, now)


async def refer_by_code_id(
    shared: Shared,
    repositories: Repositories,
    user_id: UUID,
    email: Email,
    referral_code_id: UUID,
    now: datetime,
) -> None:
    """Store the referral by a code that was live when the user registered.

    Does nothing, and counts no use, if the code is used up, its owner is erased or the user
    themselves, or the email address was referred before: the account is made all the same.
    """
    try:
        async with repositories.savepoint():
            taken = await repositories.referral_code_uses.take_by_id(referral_code_id, now)
            await _store_referral(shared, repositories, user_id, email, taken, now)
    except ReferralCodeUnusable:
        pass


async def note_confirmation_of(
    shared: Shared, repositories: Repositories, user_id: UUID, now: datetime
) -> None:
    """Count the confirmed email address as an event, if somebody has referred the user."""
    participant = await repositories.participants.lock(user_id)
    referral = await repositories.referrals.lock(user_id)
    if referral is None:
        return
    if participant is None:  # referred before there were participants
        await repositories.participants.add_account(user_id, now)
    await note_confirmation(shared, repositories, referral, now)


async def note_confirmation(
    shared: Shared, repositories: Repositories, referral: ProgrammeReferral, now: datetime
) -> ProgrammeReferral:
    """Count the email address of a locked referral's account as an event, if it is confirmed.

    Returns the referral as it is then. Does nothing if its rules do not mention such events.
    """
    if not await shared.referrals.names(repositories, referral, EMAIL_CONFIRMED):
        return referral
    user_id = referral.referral_id
    confirmed_at = await repositories.users.find_confirmation(user_id)
    if confirmed_at is None:
        return referral
    event = Event(
        event_id=uuid7(),
        programme_id=referral.programme_id,
        external_id=f"{EMAIL_CONFIRMED} {user_id}",  # with a space, which no company's id has
        participant_id=user_id,
        type=EMAIL_CONFIRMED,
        amount=None,
        unit=None,
        refunds=None,
        occurred_at=confirmed_at,
        received_at=now,
    )
    if await repositories.events.add(event, b""):
        assessed = await shared.referrals.assess(repositories, referral, now, event=event)
        return assessed.referral
    return referral


def normalise(code: str, field: str = "") -> str:
    """Return the normalised code; raise ReferralCodeUnusable, about that member of the request."""
    try:
        return normalise_code(code)
    except InvalidInput as error:
        raise ReferralCodeUnusable(field=field) from error


async def _store_referral(
    shared: Shared,
    repositories: Repositories,
    user_id: UUID,
    email: Email,
    taken: TakenReferralCode | None,
    now: datetime,
) -> UUID:
    if (
        taken is None
        or taken.owner_id == user_id
        or taken.programme_id != DEFAULT_PROGRAMME_ID  # the one that accounts take part in
    ):
        raise ReferralCodeUnusable
    new = new_referral(shared, taken, user_id, email, registered_at=now, made_by=SYSTEM)
    try:
        referral = await shared.referrals.add(repositories, new, now)
        await note_confirmation(shared, repositories, referral, now)
    except AlreadyReferred as error:
        raise ReferralCodeUnusable from error
    if referral.flags:
        # For operators alone: a row would show it to the account, which could learn to avoid it.
        shared.events.log_when_committed(
            repositories, SecurityEvent.REFERRAL_FLAGGED, user_id, reason=",".join(referral.flags)
        )
    await count_use(shared, repositories, taken, now)
    return taken.owner_id


def new_referral(
    shared: Shared, taken: TakenReferralCode, referee_id: UUID, email: Email | None, **more: Any
) -> NewReferral:
    """Return the sign-up with a code that was taken, with what an email address, if known, tells.

    `more` are the other members of NewReferral.
    """
    if email is not None:
        owner_key = taken.owner_email_key
        more |= {
            "email_hash": hash_email(email, taken.programme_id, shared.hash_key),
            "mailbox_hash": hash_mailbox(email.key, shared.hash_key),
            "flagged": owner_key is not None and fold_mailbox(email.key) == fold_mailbox(owner_key),
            "disposable_email": is_disposable(email),
        }
    return NewReferral(referee_id=referee_id, taken=taken, **more)


async def count_use(
    shared: Shared, repositories: Repositories, taken: TakenReferralCode, now: datetime
) -> None:
    """Count the use of a code without a limit; if the last use ended it, have it forgotten."""
    if taken.max_uses is None:
        # Last, because until the commit it makes registrations that draw the same slot wait.
        slot = secrets.randbelow(USE_SLOTS)
        await repositories.referral_code_uses.count_use(taken.referral_code_id, slot)
    if taken.used_up and taken.owner_email_key is not None:
        await shared.invalidation.invalidate(repositories, [code_key(taken.owner_email_key)], now)
