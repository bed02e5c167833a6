"""What can be done with accounts."""

import hmac
import logging
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from uuid6 import uuid7

from service.batches import Batches
from service.database import Database, Repositories, TransactionConflict, retried
from service.domain.clock import Clock
from service.domain.errors import (
    InvalidCredentials,
    InvalidInput,
    InvalidToken,
    ReferralCodeUnusable,
    SignInTooOld,
    UserNotFound,
)
from service.domain.pages import Cursor, Page
from service.domain.passwords import check_password
from service.domain.referral_codes import normalise_code
from service.domain.sessions import Caller
from service.domain.users import Email, Role, User, parse_email
from service.passwords import PasswordHasher
from service.use_cases.forgetting import Forgetting, code_key, session_key
from service.use_cases.idempotency import AnswerOnce

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
        hasher: PasswordHasher,
        clock: Clock,
        *,
        password_min_length: int,
        hash_key: bytes,
    ) -> None:
        self._database = database
        self._forgetting = forgetting
        self._hasher = hasher
        self._clock = clock
        self._password_min_length = password_min_length
        self._hash_key = hash_key
        self._by_id = Batches(
            database, lambda repositories, user_ids: repositories.users.find_several(user_ids)
        )

    @retried
    async def register(self, registration: Registration, once: AnswerOnce[User]) -> User:
        """Make an account, and in the same transaction the referral, if there is a code.

        Raises EmailMalformed, PasswordUnacceptable, EmailTaken, or ReferralCodeUnusable; then
        there is no account.
        """
        email = parse_email(registration.email)
        check_password(registration.password, email, self._password_min_length, "#/password")
        password_hash = await self._hasher.hash(registration.password)
        now = self._clock()
        async with self._database.transaction() as repositories:
            await once.claim(repositories, now)
            user, old_keys = await self.add(
                repositories, email, now, registration.referral_code, password_hash=password_hash
            )
            await once.keep(repositories, user, user.user_id)
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
        await repositories.users.add(
            user_id, email, password_hash, Role.USER, now, now if email_confirmed else None
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
        )
        return user, old_keys

    async def find(self, user_id: UUID) -> User:
        """Return the account; raise UserNotFound."""
        user = await self._by_id.find(user_id)
        if user is None:
            raise UserNotFound
        return user

    async def page(self, limit: int, behind: Cursor | None) -> Page[User]:
        """Return a page of all accounts, newest first."""
        async with self._database.reading() as repositories:
            users = await repositories.users.newest(limit + 1, behind)
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

        The row stays, without a name, so that the referrer's count does. Raises
        InvalidCredentials if the password is wrong, InvalidInput if there is none. An account
        that has none is erased in a session that has just begun; else raises SignInTooOld.
        """
        user_id = caller.user_id
        now = self._clock()
        async with self._database.reading() as repositories:
            credentials = await repositories.users.find_credentials(user_id)
            email_key = await repositories.users.find_email_key(user_id)
            found = await repositories.sessions.find_open(caller.session_id, now)
        if email_key is None or found is None:
            raise InvalidToken  # erased, or signed out, since the session was checked
        password_hash = credentials.password_hash if credentials else None
        if password_hash is None:
            if not found[0].has_just_begun(now):
                raise SignInTooOld("Accounts without a password are erased just after signing in.")
        elif password is None:
            raise InvalidInput("This account has a password.", pointer="#/password")
        elif not (await self._hasher.verify(password, password_hash))[0]:
            raise InvalidCredentials("The password is wrong.", pointer="#/password")
        async with self._database.transaction() as repositories:
            # The code before its owner: registrations lock them in this order too.
            await repositories.referral_codes.end_of_owner(user_id, now)
            if not await repositories.users.erase(user_id, password_hash, now):
                # Changed, or hashed anew by a sign-in, since it was read: to be verified again.
                raise TransactionConflict
            ended = await repositories.sessions.delete_of_user(user_id)
            await repositories.identities.delete_of_user(user_id)
            await repositories.idempotency_keys.delete_of_user(user_id)
            old_keys = [code_key(email_key), *map(session_key, ended)]
            await self._forgetting.plan(repositories, old_keys, now)
        await self._forgetting.forget(old_keys)
        log.info("user erased: %s", user_id)

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
            taken = await repositories.referral_codes.take(normalise_code(code), now)
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

    def _email_hash(self, email: Email) -> bytes:
        return hmac.digest(self._hash_key, b"e-mail " + email.key.encode(), "sha256")
