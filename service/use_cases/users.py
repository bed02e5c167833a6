"""What can be done with accounts."""

import hmac
import logging
import secrets
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from uuid6 import uuid7

from service.batches import Batches
from service.database import Database, Repositories, TransactionConflict, retried
from service.domain.clock import Clock
from service.domain.email_verification import LOCAL, Verdict, Verification, is_disposable
from service.domain.errors import (
    EmailTaken,
    InvalidCredentials,
    InvalidInput,
    InvalidToken,
    ReferralCodeUnusable,
    SignInTooOld,
    UserNotFound,
)
from service.domain.jobs import JobKind
from service.domain.mails import MailKind
from service.domain.pages import Cursor, Page
from service.domain.passwords import check_password
from service.domain.referral_codes import normalise_code
from service.domain.sessions import Caller
from service.domain.users import Email, Role, User, parse_email
from service.passwords import PasswordHasher
from service.use_cases.forgetting import CODE_KEY, Forgetting, code_key, session_key
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.jobs import Jobs
from service.use_cases.mails import mail_to_email

USE_SLOTS: Final = 16
"""How many registrations with one unlimited code can be counted at the same instant."""
log = logging.getLogger(__name__)


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
        forgetting: Forgetting,
        jobs: Jobs,
        hasher: PasswordHasher,
        clock: Clock,
        *,
        password_min_length: int,
        hash_key: bytes,
        confirmation_required: bool,
    ) -> None:
        self._database = database
        self._forgetting = forgetting
        self._jobs = jobs
        self._hasher = hasher
        self._clock = clock
        self._password_min_length = password_min_length
        self._hash_key = hash_key
        self._confirmation_required = confirmation_required
        self._by_id = Batches[UUID, User](
            lambda user_ids: database.read(lambda stored: stored.users.find_several(user_ids))
        )

    @retried
    async def register(
        self, registration: Registration, once: AnswerOnce[User | None]
    ) -> User | None:
        """Make an account, and in the same transaction the referral, if there is a code.

        Raises EmailMalformed, PasswordUnacceptable, EmailTaken, or ReferralCodeUnusable; then
        there is no account. Where e-mails have to be confirmed, there is no EmailTaken: it returns
        None, after the same work, and the owner of the e-mail gets a mail.
        """
        email = parse_email(registration.email)
        check_password(registration.password, email, self._password_min_length, "#/password")
        await once.look(self._database, self._clock())
        password_hash = await self._hasher.hash(registration.password)
        now = self._clock()
        async with self._database.transaction() as repositories:
            await once.claim(repositories, now)
            user: User | None
            # Undone alone, the transaction goes on: a known e-mail must cause a mail as well.
            undoable = repositories.savepoint if self._confirmation_required else nullcontext
            try:
                async with undoable():
                    user, old_keys = await self.add(
                        repositories,
                        email,
                        now,
                        registration.referral_code,
                        password_hash=password_hash,
                    )
            except EmailTaken:
                if not self._confirmation_required:
                    raise
                user, old_keys = None, []
                await self.check_code(repositories, registration.referral_code, now)
                await self._jobs.plan(repositories, mail_to_email(MailKind.REGISTERED_AGAIN, email))
            await once.keep(repositories, user, user.user_id if user else None)
        await self._forgetting.forget(old_keys)
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
        confirmation_required = self._confirmation_required or (
            disposable and self._jobs.include(JobKind.MAIL)
        )
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
        return user, old_keys

    async def find(self, user_id: UUID) -> User:
        """Return the account; raise UserNotFound."""
        user = await self._by_id.find(user_id)
        if user is None:
            raise UserNotFound
        return user

    async def page(self, limit: int, behind: Cursor | None) -> Page[User]:
        """Return a page of all accounts, newest first."""
        users = await self._database.listing(
            lambda repositories: repositories.users.newest(limit + 1, behind)
        )
        return Page.of(users, limit, lambda user: Cursor(user.created_at, user.user_id))

    async def find_by_email(self, email: str) -> Page[User]:
        """Return the account with the e-mail as a page of one or none; raise EmailMalformed."""
        key = parse_email(email).key
        async with self._database.reading() as repositories:
            user = await repositories.users.find_by_email(key)
        return Page([user] if user else [], None)

    @retried
    async def set_disabled(self, user_id: UUID, disabled: bool) -> User:
        """Disable the account, which ends its sessions and its code's life, or enable it.

        Raises UserNotFound.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            email_key = await repositories.users.set_disabled(user_id, now if disabled else None)
            if email_key is None:
                raise UserNotFound
            ended = await repositories.sessions.end_all_but(user_id, None, now) if disabled else []
            old_keys = [code_key(email_key), *map(session_key, ended)]
            await self._forgetting.plan(repositories, old_keys, now)
            user = await repositories.users.find(user_id)
        await self._forgetting.forget(old_keys)
        log.info("user %s: %s", "disabled" if disabled else "enabled", user_id)
        assert user is not None
        return user

    @retried
    async def erase(self, caller: Caller, password: str | None) -> None:
        """Remove the account's personal data, end its sessions and its code.

        The row stays, without a name, so that the referrer's count does. Raises what `prove` does.
        """
        user_id = caller.user_id
        password_hash = await self.prove(caller, password)
        now = self._clock()
        async with self._database.transaction() as repositories:
            # The code before its owner: registrations lock them in this order too.
            await repositories.referral_codes.end_of_owner(user_id, now, CODE_KEY)
            locked = await repositories.users.lock(user_id)
            if locked is None:
                raise InvalidToken  # erased since the session was checked
            # Once more: another one may have been made before the lock.
            await repositories.referral_codes.end_of_owner(user_id, now, CODE_KEY)
            await repositories.referral_codes.disown_names(user_id)
            if not await repositories.users.erase(user_id, password_hash, now):
                # Changed, or hashed anew by a sign-in, since it was read: to be verified again.
                raise TransactionConflict
            ended = await repositories.sessions.delete_of_user(user_id)
            await repositories.identities.delete_of_user(user_id)
            await repositories.enrichments.delete_of_user(user_id)
            await repositories.mail_tokens.delete_of_user(user_id)
            await repositories.idempotency_keys.delete_of_user(user_id)
            await repositories.jobs.delete_parked_of_user(user_id, locked[0].key)
            old_keys = [code_key(locked[0].key), *map(session_key, ended)]
            await self._forgetting.plan(repositories, old_keys, now)
        await self._forgetting.forget(old_keys)
        log.info("user erased: %s", user_id)

    async def prove(self, caller: Caller, password: str | None) -> str | None:
        """Return the hash of the caller's password, which has proved who makes the request.

        Raises InvalidCredentials if the password is wrong, InvalidInput if there is none. An
        account that has none proves itself in a session that has just begun, and the hash is
        None; else raises SignInTooOld.
        """
        now = self._clock()
        async with self._database.reading() as repositories:
            credentials = await repositories.users.find_credentials(caller.user_id)
            found = await repositories.sessions.find_open(caller.session_id, now)
        if found is None:
            raise InvalidToken  # erased, or signed out, since the session was checked
        if credentials is None:
            if not found[0].has_just_begun(now):
                raise SignInTooOld("Without a password this is done just after signing in.")
            return None
        if password is None:
            raise InvalidInput("This account has a password.", pointer="#/password")
        verified, _ = await self._hasher.verify(password, credentials.password_hash)
        if not verified:
            raise InvalidCredentials("The password is wrong.", pointer="#/password")
        return credentials.password_hash

    @retried
    async def make_admin(self, email: str, password: str) -> None:
        """Make an account with the role admin; raise EmailMalformed, PasswordUnacceptable or
        EmailTaken."""
        parsed = parse_email(email)
        check_password(password, parsed, self._password_min_length, "#/password")
        password_hash = await self._hasher.hash(password)
        async with self._database.transaction() as repositories:
            await repositories.users.add(uuid7(), parsed, password_hash, Role.ADMIN, self._clock())

    @retried
    async def promote(self, email: str) -> None:
        """Give an existing account the role admin; raise EmailMalformed or UserNotFound."""
        async with self._database.transaction() as repositories:
            if not await repositories.users.set_role(parse_email(email).key, Role.ADMIN):
                raise UserNotFound

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
        if taken is None:
            raise ReferralCodeUnusable
        await repositories.referrals.add(
            user_id, taken.owner_id, taken.code, now, self._email_hash(email)
        )
        if taken.max_uses is None:
            # Last, because until the commit it holds up whoever draws the same slot.
            slot = secrets.randbelow(USE_SLOTS)
            await repositories.referral_codes.count_use(taken.referral_code_id, slot)
        old_keys = [code_key(taken.owner_email_key)] if taken.used_up else []
        await self._forgetting.plan(repositories, old_keys, now)
        return taken.owner_id, old_keys

    async def check_code(self, repositories: Repositories, code: str | None, now: datetime) -> None:
        """Raise ReferralCodeUnusable unless the code, if there is one, could be taken now."""
        if code is not None:
            try:
                usable = await repositories.referral_codes.find_usable(
                    normalise_code(code), now, confirmed_only=self._confirmation_required
                )
            except InvalidInput as error:
                raise ReferralCodeUnusable from error
            if usable is None:
                raise ReferralCodeUnusable

    def _email_hash(self, email: Email) -> bytes:
        return hmac.digest(self._hash_key, b"e-mail " + email.key.encode(), "sha256")


def jobs_about_email(user_id: UUID) -> dict[JobKind, Any]:
    """Return the jobs that find out about the e-mail which an account has from now on."""
    about = {"user_id": str(user_id)}
    return {JobKind.VERIFY_EMAIL: about, JobKind.ENRICH: about}
