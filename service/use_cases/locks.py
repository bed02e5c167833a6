"""The order in which transactions lock rows, which keeps them from deadlocks.

1. the OAuth client
2. all admins, by id: `spare_last_admin`
3. the claims of an email address, by id
4. the user, with `hold`
5. the user's referral code
6. the user, with `lock`: `end_code_and_lock`
7. what belongs to the user: tokens, authorization codes, sessions, identities, changes

A transaction may skip steps, but not go back. Using or changing a code locks the code before its
owner, and the owner only FOR KEY SHARE, which `hold` allows and `lock` does not: between 4 and 6
current uses of the code can finish.

Where the order cannot be kept, PostgreSQL ends one of the two transactions, and `retried` runs it
again: a session that is revoked by its token is locked before its user is known, and undoing a
change may lock a second user, the one that has the old address by now.
"""

from datetime import datetime
from uuid import UUID

from service.domain.errors import LastAdmin
from service.domain.identities import Identity
from service.domain.referral_codes import EndedReferralCode
from service.domain.users import LockedUser
from service.postgresql.database import Repositories
from service.use_cases.cache_invalidation import CODE_KEY


async def spare_last_admin(repositories: Repositories, user_id: UUID) -> None:
    """Lock the admins if the user is one; raise LastAdmin if no other admin could act.

    Called before the user is locked, to keep the order, and again after it: the user may have
    become an admin in between.
    """
    if await repositories.users.lock_admins(user_id) == [user_id]:
        raise LastAdmin


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

    Returns None if the account is erased.
    """
    await repositories.users.hold(user_id)
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
