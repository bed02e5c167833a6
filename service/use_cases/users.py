"""What can be done with accounts."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from uuid6 import uuid7

from service.domain.email_verification import LOCAL, Verdict, Verification, is_disposable
from service.domain.emails import Email, parse_email
from service.domain.errors import EmailMalformed, EmailNotConfirmed, InvalidToken, UserNotFound
from service.domain.jobs import JobKind
from service.domain.mails import MailKind
from service.domain.pages import Cursor, Page
from service.domain.passwords import check_password
from service.domain.security_events import SecurityEvent
from service.domain.sessions import Caller
from service.domain.users import Admin, LockedUser, Role, User
from service.postgresql.batch_loader import BatchLoader
from service.postgresql.database import Repositories, TryAgain, retried
from service.use_cases.credentials import reauthenticate
from service.use_cases.erasure import PasswordChanged, remove_account
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.locks import end_code_and_lock, lock_standing, spare_last_admin
from service.use_cases.mails import mail_to_email, mail_to_user
from service.use_cases.referring import refer_by_code
from service.use_cases.sessions import end_sessions
from service.use_cases.shared import Shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What somebody registers with."""

    email: str
    password: str
    referral_code: str | None = None


class Users:
    """Accounts: registering, reading, disabling, promoting, erasing."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._database = database = shared.database
        self._events = shared.events
        self._clock = shared.clock
        self._by_id = BatchLoader[UUID, User](
            lambda user_ids: database.read(lambda stored: stored.users.find_several(user_ids))
        )

    def check_password(self, password: str, email: str = "") -> None:
        """Raise PasswordUnacceptable unless an account may have the password.

        The email address counts if it is one.
        """
        try:
            parsed = parse_email(email)
        except EmailMalformed:
            parsed = Email("", "")
        check_password(password, parsed, self._shared.password_rules, "password")

    async def register(self, registration: Registration, once: AnswerOnce[User]) -> User:
        """Make an account, and in the same transaction the referral, if there is a code.

        Raises EmailMalformed, PasswordUnacceptable, EmailTaken, or ReferralCodeUnusable; there is
        no account then.
        """
        email = parse_email(registration.email)
        check_password(registration.password, email, self._shared.password_rules, "password")
        await once.look(self._database, self._clock())
        password_hash = await self._shared.hasher.hash(registration.password)
        return await self._register(email, password_hash, registration.referral_code, once)

    @retried
    async def _register(
        self, email: Email, password_hash: str, referral_code: str | None, once: AnswerOnce[User]
    ) -> User:
        now = self._clock()
        async with self._database.transaction() as repositories:
            await once.claim(repositories, now)
            user = await self.add_account(
                repositories, email, now, referral_code, password_hash=password_hash
            )
            await once.keep(repositories, user, user.user_id)
        return user

    async def add_account(
        self,
        repositories: Repositories,
        email: Email,
        now: datetime,
        referral_code: str | None = None,
        *,
        password_hash: str | None = None,
        email_confirmed: bool = False,
    ) -> User:
        """Make an account, and the referral if there is a code, in the caller's transaction.

        Raises EmailTaken or ReferralCodeUnusable.
        """
        jobs = self._shared.jobs
        user_id = uuid7()
        verification = None
        if disposable := is_disposable(email):
            verification = Verification(verdict=Verdict.DISPOSABLE, source=LOCAL, checked_at=now)
        confirmation_required = disposable and jobs.include(JobKind.MAIL)
        await repositories.users.add(
            user_id,
            email,
            password_hash,
            Role.USER,
            now,
            email_confirmed_at=now if email_confirmed else None,
            confirmation_required=confirmation_required,
            verification=verification,
        )
        referrer_id = None
        if referral_code is not None:
            referrer_id = await refer_by_code(
                self._shared, repositories, user_id, email, referral_code, now
            )
        follow_ups = jobs_about_email(user_id)
        if disposable:
            del follow_ups[JobKind.VERIFY_EMAIL]  # known already
        if not email_confirmed:
            follow_ups |= mail_to_email(MailKind.REGISTRATION, email)
        await jobs.plan(repositories, follow_ups)
        await self._events.record(
            repositories,
            SecurityEvent.ACCOUNT_REGISTERED,
            user_id,
            now,
            reason="issuer" if password_hash is None else "password",
        )
        return User(
            user_id=user_id,
            email=email.shown,
            email_confirmed=email_confirmed,
            role=Role.USER,
            created_at=now,
            disabled=False,
            referrer_id=referrer_id,
            awaits_confirmation=confirmation_required and not email_confirmed,
            email_verification=verification,
        )

    async def find(self, user_id: UUID) -> User:
        """Return the account; raise UserNotFound."""
        user = await self._by_id.find(user_id)
        if user is None:
            raise UserNotFound
        return self.judge(user)

    def judge(self, user: User) -> User:
        """Return the account with EMAIL_CONFIRMATION applied: may it sign in unconfirmed?"""
        if self._shared.confirmation_required and not user.email_confirmed:
            return replace(user, awaits_confirmation=True)
        return user

    async def page(self, limit: int, after: Cursor | None) -> Page[User]:
        """Return a page of all accounts, newest first."""
        users = await self._database.from_standby(
            lambda repositories: repositories.users.newest(limit + 1, after)
        )
        users = [self.judge(user) for user in users]
        return Page.of(users, limit, lambda user: Cursor(user.created_at, user.user_id))

    async def find_by_email(self, email: str) -> Page[User]:
        """Return a page with the account that has the email address, if any.

        Raises EmailMalformed.
        """
        key = parse_email(email).key
        user = await self._database.read(lambda stored: stored.users.find_by_email(key))
        return Page([self.judge(user)] if user else [], None)

    @retried
    async def set_disabled(self, user_id: UUID, disabled: bool, reason: str) -> User:
        """Enable the account, or disable it, which ends its sessions and suspends its code.

        `reason` is what the log names as the cause. Raises UserNotFound or LastAdmin.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            if disabled:
                await spare_last_admin(repositories, user_id)
            participant = await repositories.participants.lock(user_id)
            if disabled:
                await repositories.users.lock(user_id)
                await spare_last_admin(repositories, user_id)
            found = await repositories.users.set_disabled(user_id, now if disabled else None)
            if found is None:
                raise UserNotFound
            email_key, changed = found
            old_keys = self._shared.keys_of_email(email_key)
            await self._shared.invalidation.invalidate(repositories, old_keys, now)
            if disabled:
                await end_sessions(
                    self._shared, repositories, user_id, now, reason="account-disabled"
                )
            # Again: it may have become one while the user's lock was waited for.
            participant = participant or await repositories.participants.lock(user_id)
            if participant is not None:
                await lock_standing(repositories, user_id, participant.programme_id, now)
                await repositories.rewards.hold_of_participant(user_id)
            if changed:
                event = (
                    SecurityEvent.ACCOUNT_DISABLED if disabled else SecurityEvent.ACCOUNT_ENABLED
                )
                await self._events.record(
                    repositories, event, user_id, now, reason=reason, by_another=True
                )
            user = await repositories.users.find(user_id)
        assert user is not None
        return self.judge(user)

    async def erase(self, caller: Caller, password: str | None) -> None:
        """Erase the caller's own account; raise LastAdmin, and as `reauthenticate` does."""
        erased = False
        while not erased:
            erased = await self._erase(
                caller.user_id, await reauthenticate(self._shared, caller, password)
            )

    @retried
    async def _erase(self, user_id: UUID, password_hash: str | None) -> bool:
        """Return False if the hash is no longer the account's: verify the password again."""
        now = self._clock()
        try:
            async with self._database.transaction() as repositories:
                user = await _lock_to_erase(repositories, user_id, now)
                await remove_account(
                    self._shared, repositories, user, password_hash, now, reason="owner"
                )
        except UserNotFound as error:
            raise InvalidToken from error  # erased since the session was checked
        except PasswordChanged:
            return False
        return True

    @retried
    async def erase_anyone(self, user_id: UUID, reason: str) -> None:
        """Erase an account for an admin; raise UserNotFound or LastAdmin.

        `reason` is what the log names as the cause.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            user = await _lock_to_erase(repositories, user_id, now)
            credentials = await repositories.users.find_credentials(user_id)
            password_hash = credentials.password_hash if credentials else None
            await remove_account(
                self._shared, repositories, user, password_hash, now, reason=reason
            )

    async def make_admin(self, email: str, password: str) -> None:
        """Make an account with the role admin, and the email address confirmed by the operator.

        Raises EmailMalformed, PasswordUnacceptable or EmailTaken.
        """
        parsed = parse_email(email)
        check_password(password, parsed, self._shared.password_rules, "password")
        await self._make_admin(parsed, await self._shared.hasher.hash(password))

    @retried
    async def _make_admin(self, email: Email, password_hash: str) -> None:
        user_id, now = uuid7(), self._clock()
        async with self._database.transaction() as repositories:
            await repositories.users.add(
                user_id, email, password_hash, Role.USER, now, email_confirmed_at=now
            )
            await self._set_admin(repositories, user_id, now, reason="created")

    @retried
    async def promote(self, email: str, *, unconfirmed: bool = False) -> bool:
        """Give an existing account the role admin; return False if it has it already.

        Its sessions end: one of them may be a stranger's, who would become an admin by a refresh.
        Raises EmailMalformed, UserNotFound, or EmailNotConfirmed unless `unconfirmed`.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            # Locked: the confirmed address must be the one that was given.
            user = await repositories.users.lock_by_email(parse_email(email).key)
            if user is None:
                raise UserNotFound
            if user.role is Role.ADMIN:
                return False
            if not (user.email_confirmed or unconfirmed):
                raise EmailNotConfirmed
            await self._set_admin(repositories, user.user_id, now)
            await end_sessions(
                self._shared, repositories, user.user_id, now, reason="admin-promoted"
            )
            # One of those sessions may have asked for another email address.
            await repositories.mail_tokens.delete_of_user(user.user_id)
            mail = mail_to_user(MailKind.PROMOTED, user.user_id)
            await self._shared.jobs.plan(repositories, mail)
        return True

    @retried
    async def demote(self, email: str) -> None:
        """Take the role admin from an account, and end its sessions, whose tokens have the scope.

        Raises EmailMalformed, UserNotFound if no admin has the address, or LastAdmin.
        """
        key = parse_email(email).key
        now = self._clock()
        async with self._database.transaction() as repositories:
            found = await repositories.users.find_by_email(key)
            if found is not None:
                await spare_last_admin(repositories, found.user_id)
            user = await repositories.users.lock_by_email(key)
            if user is None or user.role is not Role.ADMIN:
                raise UserNotFound("There is no admin with this email address.")
            await spare_last_admin(repositories, user.user_id)
            await repositories.users.set_role(user.user_id, Role.USER, None)
            await end_sessions(
                self._shared, repositories, user.user_id, now, reason="admin-demoted"
            )
            await self._events.record(
                repositories, SecurityEvent.ADMIN_DEMOTED, user.user_id, now, by_another=True
            )

    async def admins(self) -> list[Admin]:
        return await self._database.read(lambda stored: stored.users.list_admins())

    async def _set_admin(
        self, repositories: Repositories, user_id: UUID, now: datetime, reason: str | None = None
    ) -> None:
        await repositories.users.set_role(user_id, Role.ADMIN, now)
        await self._events.record(
            repositories, SecurityEvent.ADMIN_PROMOTED, user_id, now, reason=reason, by_another=True
        )


async def _lock_to_erase(repositories: Repositories, user_id: UUID, now: datetime) -> LockedUser:
    """Lock all that `remove_account` needs, and delete the claims of the email address.

    Raises UserNotFound or LastAdmin.
    """
    await spare_last_admin(repositories, user_id)
    email_key = await repositories.users.find_email_key(user_id)
    if email_key is not None:
        await repositories.claims.delete_of_email(email_key)
    user = await end_code_and_lock(repositories, user_id, now)
    if user is None:
        raise UserNotFound
    if user.email.key != email_key:
        raise TryAgain
    await spare_last_admin(repositories, user_id)
    return user


def jobs_about_email(user_id: UUID) -> dict[JobKind, Any]:
    """Return the jobs that look up an email address that is new to its account."""
    about = {"user_id": str(user_id)}
    return {JobKind.VERIFY_EMAIL: about, JobKind.ENRICH: about}
