"""Erasing an account, and giving one to the owner of its email address.

Erasing removes what says who somebody is and what they did. The row in `users` stays, without a
name, and with it what belongs to others: a referrer's count, what was decided about a referral and
why, and the names of codes, which are never given out again. tests/api/test_erasure.py checks that
no table with a user's data is forgotten.
"""

from datetime import datetime
from uuid import UUID

from service.domain.security_events import SecurityEvent
from service.domain.users import LockedUser
from service.postgresql.database import Repositories, TryAgain
from service.use_cases.cache_invalidation import session_key
from service.use_cases.locks import end_code_and_lock
from service.use_cases.sessions import end_sessions
from service.use_cases.shared import Shared


class PasswordChanged(Exception):
    """The password hash has changed since the password was verified: verify it again."""


async def remove_account(
    shared: Shared,
    repositories: Repositories,
    user: LockedUser,
    password_hash: str | None,
    now: datetime,
    *,
    reason: str,
) -> None:
    """Remove a locked account's personal data, after its code has ended.

    `reason` is what the log names as the cause. Raises PasswordChanged if `password_hash` is no
    longer the account's.
    """
    user_id = user.user_id
    if not await repositories.users.erase(user_id, password_hash, now):
        raise PasswordChanged
    await repositories.referral_codes.disown_names(user_id)
    await repositories.signals.delete_of_participant(user_id)
    await repositories.participants.erase(user_id, now)
    ended = await repositories.sessions.end_all_but(user_id, None, now)
    await repositories.sessions.delete_of_user(user_id)
    await repositories.identities.delete_of_user(user_id)
    await repositories.enrichments.delete_of_user(user_id)
    await repositories.mail_tokens.delete_of_user(user_id)
    await repositories.confirmations.delete_of_user(user_id)
    await repositories.account_changes.delete_of_user(user_id)
    await repositories.security_events.delete_of_user(user_id)
    await repositories.idempotency_keys.delete_of_user(user_id)
    await repositories.jobs.delete_parked_of_user(user_id, user.email.key)
    old_keys = [*shared.keys_of_email(user.email.key), *map(session_key, ended)]
    await shared.invalidation.invalidate(repositories, old_keys, now)
    # Only logged: rows would be personal data of somebody who is gone.
    log = shared.events.log_when_committed
    log(repositories, SecurityEvent.ACCOUNT_ERASED, user_id, reason=reason)
    if ended:
        event, count = SecurityEvent.SESSION_ENDED, len(ended)
        log(repositories, event, user_id, reason="account-erased", count=count)


async def reclaim(
    shared: Shared, repositories: Repositories, user_id: UUID, now: datetime
) -> LockedUser:
    """Lock an account whose email address was never confirmed, for the owner of the address.

    What a stranger may have put there ends: password, identities, sessions, grants, mailed tokens,
    the live code, the account's own referral, its public name, and what the stranger could be
    recognized by. The caller has proof that the owner is there, and
    gives the account its new way in.
    """
    user = await end_code_and_lock(repositories, user_id, now)
    if user is None or user.email_confirmed:
        raise TryAgain  # erased or confirmed since: its code must live on
    await strip(shared, repositories, user, now)
    return user


async def strip(
    shared: Shared, repositories: Repositories, user: LockedUser, now: datetime
) -> None:
    """Do what `reclaim` does after the lock."""
    user_id = user.user_id
    await repositories.users.set_password_hash(user_id, None)
    # First: what the referral earned is taken back, from balances, which come after standings.
    await repositories.participants.remove_public_name(user_id)
    await shared.referrals.remove(repositories, user_id, now)
    await repositories.signals.delete_of_participant(user_id)
    await repositories.identities.delete_of_user(user_id)
    await repositories.mail_tokens.delete_of_user(user_id)
    old_keys = shared.keys_of_email(user.email.key)
    await shared.invalidation.invalidate(repositories, old_keys, now)
    await end_sessions(shared, repositories, user_id, now, reason="account-reclaimed")
    event = SecurityEvent.ACCOUNT_RECLAIMED
    await shared.events.record(repositories, event, user_id, now)
