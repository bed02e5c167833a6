"""Proving who somebody is by email address and password."""

from dataclasses import replace

from service.domain.emails import parse_email
from service.domain.errors import (
    AccountDisabled,
    EmailMalformed,
    HashingQueueFull,
    InvalidCredentials,
    InvalidInput,
    InvalidToken,
    SignInTooOld,
)
from service.domain.sessions import Caller, Credentials
from service.postgresql.database import retried
from service.use_cases.shared import Shared


async def verify_credentials(shared: Shared, email: str, password: str) -> Credentials:
    """Return whose they are; raise InvalidCredentials, or AccountDisabled if they are right.

    An unknown email address costs a hash too, and is refused in the same words. An outdated
    hash is replaced.
    """
    try:
        email_key = parse_email(email).key
    except EmailMalformed:
        email_key = ""  # nobody's
    while True:
        async with shared.database.autocommit() as repositories:
            credentials = await repositories.users.find_credentials_by_email(email_key)
        password_hash = credentials.password_hash if credentials else None
        verified, outdated = await shared.hasher.verify(password, password_hash)
        if not verified or credentials is None or _awaits_confirmation(shared, credentials):
            # All alike: where email addresses have to be confirmed, the answer does not reveal
            # whether one had an account before it was registered with this password.
            reason = (
                "unknown-email"
                if credentials is None
                else "email-not-confirmed"
                if verified
                else "wrong-password"
            )
            await shared.events.record_failed_sign_in(email_key, reason)
            raise InvalidCredentials
        if credentials.disabled:
            await shared.events.record_failed_sign_in(email_key, "account-disabled")
            raise AccountDisabled
        # Only now: its time would reveal that the password is right.
        if not outdated:
            return credentials
        if rehashed := await _rehash(shared, credentials, password):
            return rehashed


async def _rehash(shared: Shared, credentials: Credentials, password: str) -> Credentials | None:
    """Store a hash at the current cost, unless the hashing queue is full.

    Returns None if the hash has changed since it was read: the password must be verified again.
    """
    try:
        new_hash = await shared.hasher.hash(password)
    except HashingQueueFull:
        return credentials

    @retried
    async def store() -> bool:
        async with shared.database.autocommit() as repositories:
            return await repositories.users.replace_password_hash(
                credentials.user_id, credentials.password_hash, new_hash
            )

    return replace(credentials, password_hash=new_hash) if await store() else None


def _awaits_confirmation(shared: Shared, credentials: Credentials) -> bool:
    """Whether sign-in has to wait; EMAIL_CONFIRMATION applies to older accounts too."""
    return credentials.awaits_confirmation or (
        shared.confirmation_required and not credentials.email_confirmed
    )


async def reauthenticate(shared: Shared, caller: Caller, password: str | None) -> str | None:
    """Return the hash of the caller's password, which proves who makes the request.

    An account without a password proves itself by a session that has just begun; the hash is then
    None. Raises InvalidCredentials if the password is wrong, InvalidInput if it is missing,
    SignInTooOld, or InvalidToken.
    """
    now = shared.clock()
    async with shared.database.autocommit() as repositories:
        credentials = await repositories.users.find_credentials(caller.user_id)
        found = await repositories.sessions.find_open(caller.session_id, now)
    if found is None:
        raise InvalidToken  # erased, or signed out, since the session was checked
    if credentials is None:
        if not found[0].has_just_begun(now):
            raise SignInTooOld("Without a password this is done just after signing in.")
        return None
    if password is None:
        raise InvalidInput("This account has a password: send it.", field="password")
    verified, _ = await shared.hasher.verify(password, credentials.password_hash)
    if not verified:
        raise InvalidCredentials("The password is wrong.", field="password")
    return credentials.password_hash
