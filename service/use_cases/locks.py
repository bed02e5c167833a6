"""Locking what several use cases lock, in the order that sql/README.md lists (*Lock order*).

A transaction may skip steps of that order, but not go back: that keeps transactions from deadlocks.
A use of a code, or a change, locks the code before its owner, and the owner only FOR KEY SHARE,
which `hold` allows and `lock` does not: between the two, uses that have begun can finish.
"""

from datetime import datetime
from uuid import UUID

from service.domain.errors import LastAdmin, ReferralCodeNotFound
from service.domain.identities import Identity
from service.domain.referral_codes import EndedReferralCode, ReferralCode
from service.domain.users import LockedUser
from service.postgresql.database import Repositories, TryAgain
from service.use_cases.cache_invalidation import CODE_KEY


async def spare_last_admin(repositories: Repositories, user_id: UUID) -> None:
    """Lock the admins if the user is one; raise LastAdmin if no other admin could act.

    Called before the user is locked, to keep the order, and again after it: the user may have
    become an admin in between.
    """
    if await repositories.users.lock_admins(user_id) == [user_id]:
        raise LastAdmin


async def lock_live_code(
    repositories: Repositories, owner_id: UUID, now: datetime, *, confirmed_only: bool
) -> ReferralCode:
    """Lock the owner's live code and return it; raise ReferralCodeNotFound or EmailNotConfirmed.

    For use cases that are `@retried`, because the code may be replaced while the lock waits.
    """
    codes = repositories.referral_codes
    locked = await codes.lock_live(owner_id, confirmed_only=confirmed_only)
    # Read under the lock: the registrations that it waited for have counted their uses.
    code = await codes.find_live(owner_id, now)
    if code is None:
        raise ReferralCodeNotFound
    if code.referral_code_id != locked:
        raise TryAgain  # made while the lock waited for the one before
    return code


async def end_code(repositories: Repositories, owner_id: UUID, now: datetime) -> EndedReferralCode:
    """End the owner's code, even if it is being replaced at this moment."""
    while True:
        found = await repositories.referral_codes.end_of_owner(owner_id, now, CODE_KEY)
        if found.ended or not found.was_there:
            return found


async def end_code_and_lock(
    repositories: Repositories, user_id: UUID, now: datetime
) -> LockedUser | None:
    """End the user's code and lock the user, who has no live code until the transaction ends.

    What the user does in a programme waits as well. Returns None if the account is erased.
    """
    await repositories.users.hold(user_id)
    await repositories.participants.lock(user_id)
    await end_code(repositories, user_id, now)
    locked = await repositories.users.lock(user_id)
    await end_code(repositories, user_id, now)  # one that was made before the lock
    return locked


async def hold_user_of(repositories: Repositories, identity: Identity) -> UUID | None:
    """Return whose identity it is, and hold that user until the transaction ends.

    Unlinking the identity waits, or is seen: after a reset of the password no session is left of
    somebody who signs in with it at that moment.
    """
    user_id = await repositories.identities.find_user_id(identity)
    while user_id is not None:
        await repositories.users.hold(user_id)
        current = await repositories.identities.find_user_id(identity)
        if current == user_id:
            break
        user_id = current
    return user_id
