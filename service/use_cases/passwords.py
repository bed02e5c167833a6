"""Setting a new password: with the old one, or with a mailed token."""

from uuid import UUID

from service.domain.emails import Email, parse_email
from service.domain.errors import InvalidCredentials, TokenUnusable
from service.domain.mails import MailKind, TokenPurpose
from service.domain.oauth import hash_secret
from service.domain.passwords import check_password
from service.domain.security_events import SecurityEvent
from service.domain.sessions import Caller
from service.postgresql.database import TryAgain, retried
from service.use_cases.erasure import strip
from service.use_cases.locks import end_code_and_lock
from service.use_cases.mails import mail_to_user
from service.use_cases.sessions import end_sessions
from service.use_cases.shared import Shared

_RESETTING = (TokenPurpose.RESET_PASSWORD,)


class Passwords:
    """Changing a password that is known, and resetting one that is forgotten."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def change(self, caller: Caller, current: str, new: str) -> None:
        """Store a new password and end the other sessions.

        Raises InvalidCredentials if `current` is wrong, PasswordUnacceptable for `new`.
        """
        shared = self._shared
        wrong = InvalidCredentials("The current password is wrong.", field="current_password")
        new_hash: str | None = None
        while True:
            async with shared.database.autocommit() as repositories:
                user = await repositories.users.find(caller.user_id)
                credentials = await repositories.users.find_credentials(caller.user_id)
            if user is None or user.email is None or credentials is None:
                raise wrong  # erased since the session was checked
            check_password(new, parse_email(user.email), shared.password_rules, "new_password")
            verified, _ = await shared.hasher.verify(current, credentials.password_hash)
            if not verified:
                raise wrong
            new_hash = new_hash or await shared.hasher.hash(new)
            if await self._replace(caller, credentials.password_hash, new_hash):
                return

    @retried
    async def _replace(self, caller: Caller, old_hash: str, new_hash: str) -> bool:
        """Return False if the hash has changed since it was read: verify the password again."""
        shared, user_id, now = self._shared, caller.user_id, self._shared.clock()
        async with shared.database.transaction() as repositories:
            if not await repositories.users.replace_password_hash(user_id, old_hash, new_hash):
                return False
            # With the old password somebody may have asked for another email address.
            await repositories.mail_tokens.delete_of_user(user_id)
            await repositories.account_changes.note_new_password(user_id)
            event = SecurityEvent.PASSWORD_CHANGED
            await shared.events.record(repositories, event, user_id, now)
            await end_sessions(
                shared,
                repositories,
                user_id,
                now,
                reason="password-changed",
                kept_session_id=caller.session_id,
            )
            await shared.jobs.plan(repositories, mail_to_user(MailKind.PASSWORD_CHANGED, user_id))
        return True

    async def reset(self, token: str, new_password: str) -> str:
        """Store a new password and end all sessions; return the key of the email address.

        The token proves access to the mailbox: the address counts as confirmed, and if it was not,
        what others have put on the account is removed. Raises TokenUnusable or
        PasswordUnacceptable.
        """
        shared = self._shared
        # What needs no look-up first, then with the email address.
        check_password(new_password, Email("", ""), shared.password_rules, "new_password")
        token_hash = hash_secret(token)
        async with shared.database.autocommit() as repositories:
            found = await repositories.mail_tokens.find(token_hash, _RESETTING, shared.clock())
        if found is None:
            raise TokenUnusable
        check_password(new_password, found.email, shared.password_rules, "new_password")
        password_hash = await shared.hasher.hash(new_password)
        assert found.user_id is not None
        return await self._reset(found.user_id, token_hash, password_hash)

    @retried
    async def _reset(self, user_id: UUID, token_hash: bytes, password_hash: str) -> str:
        shared, now = self._shared, self._shared.clock()
        async with shared.database.transaction() as repositories:
            if reclaimed := await repositories.users.is_unconfirmed(user_id):
                user = await end_code_and_lock(repositories, user_id, now)
            else:
                user = await repositories.users.lock(user_id)
            taken = await repositories.mail_tokens.take(token_hash, _RESETTING, now)
            if user is None or taken is None or taken.email.key != user.email.key:
                raise TokenUnusable
            if reclaimed is user.email_confirmed:
                raise TryAgain  # confirmed, or given another address, before the lock
            if reclaimed:
                await strip(shared, repositories, user, now)
            else:
                await repositories.mail_tokens.delete_of_user(user_id)
                await repositories.identities.delete_of_other_emails(user_id, user.email.key)
                await end_sessions(shared, repositories, user_id, now, reason="password-reset")
            await repositories.users.set_password_hash(user_id, password_hash)
            await repositories.users.confirm_email(user_id, user.email.key, now)
            await repositories.account_changes.note_new_password(user_id)
            event = SecurityEvent.PASSWORD_RESET
            await shared.events.record(repositories, event, user_id, now)
            await shared.jobs.plan(repositories, mail_to_user(MailKind.PASSWORD_CHANGED, user_id))
        return user.email.key
