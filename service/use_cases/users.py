"""What can be done with accounts."""

import hmac
import secrets
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.clock import Clock
from service.domain.email_verification import LOCAL, Verdict, Verification, is_disposable
from service.domain.errors import (
    EmailMalformed,
    EmailNotConfirmed,
    InvalidCredentials,
    InvalidInput,
    InvalidToken,
    LastAdmin,
    ReferralCodeUnusable,
    SignInTooOld,
    UserNotFound,
)
from service.domain.jobs import JobKind
from service.domain.mails import MailKind
from service.domain.pages import Cursor, Page
from service.domain.passwords import PasswordRules, check_password
from service.domain.referral_codes import TakenReferralCode, normalise_code
from service.domain.security_events import SecurityEvent
from service.domain.sessions import Caller
from service.domain.users import (
    Admin,
    Email,
    Role,
    User,
    fold_mailbox,
    hash_mailbox,
    parse_email,
)
from service.postgresql.batch_loader import BatchLoader
from service.postgresql.database import Database, Repositories, TransactionConflict, retried
from service.redis.password_attempts import known_addresses_key
from service.security.password_hashing import PasswordHasher
from service.use_cases.cache_invalidation import CODE_KEY, CacheInvalidation, code_key, session_key
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.jobs import Jobs
from service.use_cases.mails import mail_to_email, mail_to_user
from service.use_cases.security_events import SecurityEvents

USE_SLOTS: Final = 16
"""How many registrations with one unlimited code can be counted at the same instant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What somebody registers with."""

    email: str
    password: str
    referral_code: str | None = None


class Users:
    """Accounts: registering, reading, disabling, erasing."""

    def __init__(
        self,
        database: Database,
        invalidation: CacheInvalidation,
        jobs: Jobs,
        hasher: PasswordHasher,
        events: SecurityEvents,
        clock: Clock,
        *,
        password_rules: PasswordRules,
        hash_key: bytes,
        confirmation_required: bool,
    ) -> None:
        self._database = database
        self._invalidation = invalidation
        self._jobs = jobs
        self._hasher = hasher
        self._events = events
        self._clock = clock
        self._password_rules = password_rules
        self._hash_key = hash_key
        self._confirmation_required = confirmation_required
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
        check_password(password, parsed, self._password_rules, "password")

    @retried
    async def register(self, registration: Registration, once: AnswerOnce[User]) -> User:
        """Make an account, and in the same transaction the referral, if there is a code.

        Raises EmailMalformed, PasswordUnacceptable, EmailTaken, or ReferralCodeUnusable; then
        there is no account.
        """
        email = parse_email(registration.email)
        check_password(registration.password, email, self._password_rules, "password")
        await once.look(self._database, self._clock())
        password_hash = await self._hasher.hash(registration.password)
        now = self._clock()
        async with self._database.transaction() as repositories:
            await once.claim(repositories, now)
            user, old_keys = await self.add(
                repositories,
                email,
                now,
                registration.referral_code,
                password_hash=password_hash,
            )
            await once.keep(repositories, user, user.user_id)
        await self._invalidation.forget(old_keys)
        return user

    async def add(
        self,
        repositories: Repositories,
        email: Email,
        now: datetime,
        referral_code: str | None,
        *,
        password_hash: str | None = None,
        email_confirmed: bool = False,
    ) -> tuple[User, list[str]]:
        """Make an account, and the referral if there is a code, in the caller's transaction.

        Returns it, and the cache keys that became old. Raises EmailTaken or
        ReferralCodeUnusable.
        """
        user_id = uuid7()
        old_keys: list[str] = []
        referrer_id = None
        disposable = is_disposable(email)
        verification = None
        if disposable:
            verification = Verification(verdict=Verdict.DISPOSABLE, source=LOCAL, checked_at=now)
        confirmation_required = disposable and self._jobs.include(JobKind.MAIL)
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
        if referral_code is not None:
            referrer_id, old_keys = await self._refer(
                repositories, user_id, email, referral_code, now
            )
        user = User(
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
        follow_ups = jobs_about_email(user_id)
        if disposable:
            del follow_ups[JobKind.VERIFY_EMAIL]  # known already
        if not email_confirmed:
            follow_ups |= mail_to_email(MailKind.REGISTRATION, email)
        await self._jobs.plan(repositories, follow_ups)
        await self._events.record(
            repositories,
            SecurityEvent.ACCOUNT_REGISTERED,
            user_id,
            now,
            reason="issuer" if password_hash is None else "password",
        )
        return user, old_keys

    async def find(self, user_id: UUID) -> User:
        """Return the account; raise UserNotFound."""
        user = await self._by_id.find(user_id)
        if user is None:
            raise UserNotFound
        return self.judge(user)

    def judge(self, user: User) -> User:
        """Return the account with the setting counted in: may it be signed in to unconfirmed?"""
        if self._confirmation_required and not user.email_confirmed:
            return replace(user, awaits_confirmation=True)
        return user

    async def page(self, limit: int, behind: Cursor | None) -> Page[User]:
        """Return a page of all accounts, newest first."""
        users = await self._database.from_standby(
            lambda repositories: repositories.users.newest(limit + 1, behind)
        )
        users = [self.judge(user) for user in users]
        return Page.of(users, limit, lambda user: Cursor(user.created_at, user.user_id))

    async def find_by_email(self, email: str) -> Page[User]:
        """Return the account with the e-mail as a page of one or none; raise EmailMalformed."""
        key = parse_email(email).key
        async with self._database.autocommit() as repositories:
            user = await repositories.users.find_by_email(key)
        return Page([self.judge(user)] if user else [], None)

    @retried
    async def set_disabled(self, user_id: UUID, disabled: bool, reason: str) -> User:
        """Disable the account, which ends its sessions and its code's life, or enable it.

        `reason` says for the log whose doing it is. Raises UserNotFound or LastAdmin.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            if disabled:
                await self._spare_last_admin(repositories, user_id)
                await repositories.users.lock(user_id)
                await self._spare_last_admin(repositories, user_id)
            found = await repositories.users.set_disabled(user_id, now if disabled else None)
            if found is None:
                raise UserNotFound
            email_key, changed = found
            old_keys = self.keys_of_email(email_key)
            if disabled:
                old_keys += await self._end_sessions(repositories, user_id, now, "account-disabled")
            await self._invalidation.plan(repositories, old_keys, now)
            if changed:
                event = (
                    SecurityEvent.ACCOUNT_DISABLED if disabled else SecurityEvent.ACCOUNT_ENABLED
                )
                await self._events.record(
                    repositories, event, user_id, now, reason=reason, by_another=True
                )
            user = await repositories.users.find(user_id)
        await self._invalidation.forget(old_keys)
        assert user is not None
        return self.judge(user)

    @retried
    async def erase(self, caller: Caller, password: str | None) -> None:
        """Erase the caller's own account; raise what `reauthenticate` does, or LastAdmin."""
        password_hash = await self.reauthenticate(caller, password)
        async with self._database.transaction() as repositories:
            try:
                old_keys = await self._erase(repositories, caller.user_id, password_hash, "owner")
            except UserNotFound as error:
                raise InvalidToken from error  # erased since the session was checked
        await self._invalidation.forget(old_keys)

    @retried
    async def erase_anyone(self, user_id: UUID, reason: str) -> None:
        """Erase an account for an admin; raise UserNotFound or LastAdmin.

        `reason` says for the log whose doing it is.
        """
        async with self._database.transaction() as repositories:
            credentials = await repositories.users.find_credentials(user_id)
            password_hash = credentials.password_hash if credentials else None
            old_keys = await self._erase(repositories, user_id, password_hash, reason)
        await self._invalidation.forget(old_keys)

    async def _erase(
        self, repositories: Repositories, user_id: UUID, password_hash: str | None, reason: str
    ) -> list[str]:
        """Remove the account's personal data, end its sessions and its code.

        The row stays, without a name, so that the referrer's count does. In the caller's
        transaction; returns the cache keys that became old. Raises UserNotFound or LastAdmin.
        """
        now = self._clock()
        await self._spare_last_admin(repositories, user_id)
        # Claims, code, owner: confirmations and registrations lock them in this order too.
        email_key = await repositories.users.find_email_key(user_id)
        if email_key is not None:
            await repositories.claims.delete_of_email(email_key)
        await repositories.referral_codes.end_of_owner(user_id, now, CODE_KEY)
        locked = await repositories.users.lock(user_id)
        if locked is None:
            raise UserNotFound
        if locked[0].key != email_key:
            raise TransactionConflict
        # Once more: another one may have been made before the lock.
        await repositories.referral_codes.end_of_owner(user_id, now, CODE_KEY)
        await self._spare_last_admin(repositories, user_id)
        return await self.remove(
            repositories, user_id, locked[0], password_hash, now, reason=reason
        )

    async def remove(
        self,
        repositories: Repositories,
        user_id: UUID,
        email: Email,
        password_hash: str | None,
        now: datetime,
        *,
        reason: str,
    ) -> list[str]:
        """Remove an account's personal data in the caller's transaction.

        The caller has ended the code and locked the account. `reason` says for the log whose doing
        it is. Returns the cache keys that became old. Raises TransactionConflict if `password_hash`
        is no longer the account's.
        """
        if not await repositories.users.erase(user_id, password_hash, now):
            # Changed, or hashed anew by a sign-in, since it was read: to be verified again.
            raise TransactionConflict
        await repositories.referral_codes.disown_names(user_id)
        ended = await repositories.sessions.end_all_but(user_id, None, now)
        await repositories.sessions.delete_of_user(user_id)
        await repositories.identities.delete_of_user(user_id)
        await repositories.enrichments.delete_of_user(user_id)
        await repositories.mail_tokens.delete_of_user(user_id)
        await repositories.confirmations.delete_of_user(user_id)
        await repositories.account_changes.delete_of_user(user_id)
        await repositories.security_events.delete_of_user(user_id)
        await repositories.idempotency_keys.delete_of_user(user_id)
        await repositories.jobs.delete_parked_of_user(user_id, email.key)
        old_keys = [*self.keys_of_email(email.key), *map(session_key, ended)]
        await self._invalidation.plan(repositories, old_keys, now)
        # Logged alone: rows would be personal data of somebody who is gone.
        self._events.log_when_committed(
            repositories, SecurityEvent.ACCOUNT_ERASED, user_id, reason=reason
        )
        if ended:
            self._events.log_when_committed(
                repositories,
                SecurityEvent.SESSION_ENDED,
                user_id,
                reason="account-erased",
                count=len(ended),
            )
        return old_keys

    async def reclaim(
        self, repositories: Repositories, user_id: UUID, now: datetime
    ) -> tuple[Email, list[str]] | None:
        """Give an account whose email address was never confirmed to the owner of the address.

        What a stranger may have put there ends, in the caller's transaction: password, identities,
        sessions, grants, mailed tokens, the live code, and the account's own referral. The caller
        has proved that the owner is there, and gives the account its new way in. Returns the email
        address, locked, and the cache keys that became old; None where the address is confirmed
        or the account erased: then nothing has ended.
        """
        if not await repositories.users.is_unconfirmed(user_id):
            return None
        # The code before its owner: registrations lock them in this order too.
        await repositories.referral_codes.end_of_owner(user_id, now, CODE_KEY)
        locked = await repositories.users.lock(user_id)
        if locked is None or locked[1]:
            raise TransactionConflict  # confirmed or erased since: the code is to live on
        # Once more: another one may have been made before the lock.
        await repositories.referral_codes.end_of_owner(user_id, now, CODE_KEY)
        email = locked[0]
        await repositories.users.set_password_hash(user_id, None)
        await repositories.referrals.delete(user_id)
        await repositories.identities.delete_of_user(user_id)
        await repositories.authorization_codes.delete_of_user(user_id)
        await repositories.mail_tokens.delete_of_user(user_id)
        ended = await repositories.sessions.end_all_but(user_id, None, now)
        old_keys = [*self.keys_of_email(email.key), *map(session_key, ended)]
        await self._invalidation.plan(repositories, old_keys, now)
        await self._events.record_ended_sessions(
            repositories, user_id, ended, now, reason="account-reclaimed"
        )
        await self._events.record(repositories, SecurityEvent.ACCOUNT_RECLAIMED, user_id, now)
        return email, old_keys

    async def reauthenticate(self, caller: Caller, password: str | None) -> str | None:
        """Return the hash of the caller's password, which has proved who makes the request.

        Raises InvalidCredentials if the password is wrong, InvalidInput if there is none. An
        account that has none proves itself in a session that has just begun, and the hash is
        None; else raises SignInTooOld.
        """
        now = self._clock()
        async with self._database.autocommit() as repositories:
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
        verified, _ = await self._hasher.verify(password, credentials.password_hash)
        if not verified:
            raise InvalidCredentials("The password is wrong.", field="password")
        return credentials.password_hash

    @retried
    async def make_admin(self, email: str, password: str) -> None:
        """Make an account with the role admin, and the email address confirmed by the operator.

        Raises EmailMalformed, PasswordUnacceptable or EmailTaken.
        """
        parsed = parse_email(email)
        check_password(password, parsed, self._password_rules, "password")
        password_hash = await self._hasher.hash(password)
        user_id, now = uuid7(), self._clock()
        async with self._database.transaction() as repositories:
            await repositories.users.add(
                user_id, parsed, password_hash, Role.USER, now, email_confirmed_at=now
            )
            await self._set_admin(repositories, user_id, now, reason="created")

    @retried
    async def promote(self, email: str, *, unconfirmed: bool = False) -> bool:
        """Give an existing account the role admin; return whether it had another one.

        Its sessions end: they may be those of a stranger, to whom a refresh would give the role.
        Raises EmailMalformed, UserNotFound, or EmailNotConfirmed unless `unconfirmed` will do.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            # Locked, so that the address which is confirmed is the one that was named.
            locked = await repositories.users.lock_by_email(parse_email(email).key)
            if locked is None:
                raise UserNotFound
            user_id, role, confirmed = locked
            if role is Role.ADMIN:
                return False
            if not (confirmed or unconfirmed):
                raise EmailNotConfirmed
            await self._set_admin(repositories, user_id, now)
            old_keys = await self._end_sessions(repositories, user_id, now, "admin-promoted")
            # What was asked for in those sessions: another address for what is now an admin.
            await repositories.mail_tokens.delete_of_user(user_id)
            await self._invalidation.plan(repositories, old_keys, now)
            await self._jobs.plan(repositories, mail_to_user(MailKind.PROMOTED, user_id))
        await self._invalidation.forget(old_keys)
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
                await self._spare_last_admin(repositories, found.user_id)
            locked = await repositories.users.lock_by_email(key)
            if locked is None or locked[1] is not Role.ADMIN:
                raise UserNotFound("There is no admin with this email address.")
            user_id = locked[0]
            await self._spare_last_admin(repositories, user_id)
            await repositories.users.set_role(user_id, Role.USER, None)
            old_keys = await self._end_sessions(repositories, user_id, now, "admin-demoted")
            await self._invalidation.plan(repositories, old_keys, now)
            await self._events.record(
                repositories, SecurityEvent.ADMIN_DEMOTED, user_id, now, by_another=True
            )
        await self._invalidation.forget(old_keys)

    async def admins(self) -> list[Admin]:
        """Return all admins."""
        async with self._database.autocommit() as repositories:
            return await repositories.users.list_admins()

    async def _set_admin(
        self,
        repositories: Repositories,
        user_id: UUID,
        now: datetime,
        reason: str | None = None,
    ) -> None:
        await repositories.users.set_role(user_id, Role.ADMIN, now)
        await self._events.record(
            repositories, SecurityEvent.ADMIN_PROMOTED, user_id, now, reason=reason, by_another=True
        )

    async def _spare_last_admin(self, repositories: Repositories, user_id: UUID) -> None:
        """Raise LastAdmin if without this account no admin could act.

        To be asked before the account is locked, so that the admins are locked in order, and once
        more behind that: it may have become an admin's meanwhile.
        """
        if await repositories.users.lock_admins(user_id) == [user_id]:
            raise LastAdmin

    async def _end_sessions(
        self, repositories: Repositories, user_id: UUID, now: datetime, reason: str
    ) -> list[str]:
        """End the user's sessions, and what would begin others; return the old cache keys."""
        ended = await repositories.sessions.end_all_but(user_id, None, now)
        await repositories.authorization_codes.delete_of_user(user_id)
        await self._events.record_ended_sessions(repositories, user_id, ended, now, reason=reason)
        return [session_key(session_id) for session_id in ended]

    async def refer_by_id(
        self,
        repositories: Repositories,
        user_id: UUID,
        email: Email,
        referral_code_id: UUID,
        now: datetime,
    ) -> list[str]:
        """Store the referral by a code that was live when the user registered; return what is old.

        There is none, and no use is counted, if the code is used up, its owner is erased or the
        user, or the e-mail was referred before: the account is made all the same.
        """
        try:
            async with repositories.savepoint():
                taken = await repositories.referral_codes.take_by_id(referral_code_id, now)
                return await self._store_referral(repositories, user_id, email, taken, now)
        except ReferralCodeUnusable:
            return []

    async def _refer(
        self,
        repositories: Repositories,
        user_id: UUID,
        email: Email,
        code: str,
        now: datetime,
    ) -> tuple[UUID, list[str]]:
        """Take the code and store the referral; return the referrer, and what became old."""
        try:
            taken = await repositories.referral_codes.take(
                normalise_code(code), now, confirmed_only=self._confirmation_required
            )
        except InvalidInput as error:
            raise ReferralCodeUnusable from error
        old_keys = await self._store_referral(repositories, user_id, email, taken, now)
        assert taken is not None
        return taken.owner_id, old_keys

    async def _store_referral(
        self,
        repositories: Repositories,
        user_id: UUID,
        email: Email,
        taken: TakenReferralCode | None,
        now: datetime,
    ) -> list[str]:
        """Store whose code the user has taken; raise ReferralCodeUnusable if it is none's."""
        if taken is None or taken.owner_id == user_id:
            raise ReferralCodeUnusable
        flags = await repositories.referrals.add(
            user_id,
            taken.owner_id,
            taken.code,
            now,
            self._email_hash(email),
            hash_mailbox(email.key, self._hash_key),
            flagged=fold_mailbox(email.key) == fold_mailbox(taken.owner_email_key),
        )
        if flags:
            event = SecurityEvent.REFERRAL_FLAGGED
            await self._events.record(repositories, event, user_id, now, reason=",".join(flags))
        if taken.max_uses is None:
            # Last, because until the commit it holds up whoever draws the same slot.
            slot = secrets.randbelow(USE_SLOTS)
            await repositories.referral_codes.count_use(taken.referral_code_id, slot)
        old_keys = [code_key(taken.owner_email_key)] if taken.used_up else []
        await self._invalidation.plan(repositories, old_keys, now)
        return old_keys

    async def find_code(
        self, repositories: Repositories, code: str | None, now: datetime
    ) -> UUID | None:
        """Return the code, if there is one; raise ReferralCodeUnusable unless it could be taken."""
        if code is None:
            return None
        try:
            found = await repositories.referral_codes.find_usable(
                normalise_code(code), now, confirmed_only=self._confirmation_required
            )
        except InvalidInput as error:
            raise ReferralCodeUnusable from error
        if found is None:
            raise ReferralCodeUnusable
        return found

    def keys_of_email(self, email_key: str) -> list[str]:
        """Return what Redis has to forget when the email address is no longer its account's."""
        return [code_key(email_key), known_addresses_key(self._hash_key, email_key)]

    def _email_hash(self, email: Email) -> bytes:
        return hmac.digest(self._hash_key, b"e-mail " + email.key.encode(), "sha256")


def jobs_about_email(user_id: UUID) -> dict[JobKind, Any]:
    """Return the jobs that find out about the e-mail which an account has from now on."""
    about = {"user_id": str(user_id)}
    return {JobKind.VERIFY_EMAIL: about, JobKind.ENRICH: about}
