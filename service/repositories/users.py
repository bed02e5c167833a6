"""The SQL of accounts."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from service.domain.email_verification import Verdict, Verification
from service.domain.errors import EmailTaken
from service.domain.pages import Cursor
from service.domain.sessions import Credentials
from service.domain.users import Admin, Email, Role, User
from service.repositories.connection import Connection
from service.repositories.constraints import on_violation

# No violation of users_email_unique: PostgreSQL would log the e-mail, and give up the transaction.
INSERT: Final = """
    INSERT INTO users (user_id, email, email_key, password_hash, role, created_at,
                       email_confirmed_at, confirmation_required,
                       email_verdict, email_verdict_source, email_checked_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT DO NOTHING
    RETURNING user_id
"""

FIND: Final = """
    SELECT u.user_id, u.email, u.role, u.created_at, u.email_confirmed_at, u.disabled_at,
           u.confirmation_required, u.email_verdict, u.email_verdict_source, u.email_checked_at,
           r.referrer_id, r.flags
      FROM users u
      LEFT JOIN referrals r ON r.user_id = u.user_id
     WHERE u.user_id = $1
       AND u.erased_at IS NULL
"""

FIND_SEVERAL: Final = """
    SELECT u.user_id, u.email, u.role, u.created_at, u.email_confirmed_at, u.disabled_at,
           u.confirmation_required, u.email_verdict, u.email_verdict_source, u.email_checked_at,
           r.referrer_id, r.flags
      FROM users u
      LEFT JOIN referrals r ON r.user_id = u.user_id
     WHERE u.user_id = ANY ($1)
       AND u.erased_at IS NULL
"""

FIND_BY_EMAIL: Final = """
    SELECT u.user_id, u.email, u.role, u.created_at, u.email_confirmed_at, u.disabled_at,
           u.confirmation_required, u.email_verdict, u.email_verdict_source, u.email_checked_at,
           r.referrer_id, r.flags
      FROM users u
      LEFT JOIN referrals r ON r.user_id = u.user_id
     WHERE u.email_key = $1
"""

NEWEST: Final = """
    SELECT u.user_id, u.email, u.role, u.created_at, u.email_confirmed_at, u.disabled_at,
           u.confirmation_required, u.email_verdict, u.email_verdict_source, u.email_checked_at,
           r.referrer_id, r.flags
      FROM users u
      LEFT JOIN referrals r ON r.user_id = u.user_id
     WHERE u.erased_at IS NULL
     ORDER BY u.created_at DESC, u.user_id DESC
     LIMIT $1
"""

NEWEST_BEHIND: Final = """
    SELECT u.user_id, u.email, u.role, u.created_at, u.email_confirmed_at, u.disabled_at,
           u.confirmation_required, u.email_verdict, u.email_verdict_source, u.email_checked_at,
           r.referrer_id, r.flags
      FROM users u
      LEFT JOIN referrals r ON r.user_id = u.user_id
     WHERE u.erased_at IS NULL
       AND (u.created_at, u.user_id) < ($2, $3)
     ORDER BY u.created_at DESC, u.user_id DESC
     LIMIT $1
"""

FIND_CREDENTIALS_BY_EMAIL: Final = """
    SELECT user_id, role, password_hash, disabled_at, email_confirmed_at,
           confirmation_required AND email_confirmed_at IS NULL AS awaits_confirmation
      FROM users
     WHERE email_key = $1
       AND password_hash IS NOT NULL
"""

FIND_CREDENTIALS: Final = """
    SELECT user_id, role, password_hash, disabled_at, email_confirmed_at,
           confirmation_required AND email_confirmed_at IS NULL AS awaits_confirmation
      FROM users
     WHERE user_id = $1
       AND password_hash IS NOT NULL
"""

FIND_EMAIL_KEY: Final = """
    SELECT email_key
      FROM users
     WHERE user_id = $1
"""

IS_UNCONFIRMED: Final = """
    SELECT EXISTS (
        SELECT FROM users
         WHERE user_id = $1
           AND email_confirmed_at IS NULL
           AND erased_at IS NULL
    )
"""

REPLACE_HASH: Final = """
    UPDATE users
       SET password_hash = $3
     WHERE user_id = $1
       AND password_hash = $2
    RETURNING user_id
"""

SET_DISABLED: Final = """
    UPDATE users u
       SET disabled_at = CASE WHEN $2::timestamptz IS NOT NULL
                              THEN coalesce(u.disabled_at, $2) END
      FROM (SELECT user_id, disabled_at FROM users WHERE user_id = $1 FOR UPDATE) AS old
     WHERE u.user_id = old.user_id
       AND u.erased_at IS NULL
    RETURNING u.email_key, (old.disabled_at IS NULL) <> ($2::timestamptz IS NULL) AS changed
"""

ERASE: Final = """
    UPDATE users
       SET email = NULL, email_key = NULL, password_hash = NULL, email_confirmed_at = NULL,
           email_verdict = NULL, email_verdict_source = NULL, email_checked_at = NULL,
           erased_at = $3
     WHERE user_id = $1
       AND password_hash IS NOT DISTINCT FROM $2
       AND erased_at IS NULL
    RETURNING user_id
"""

CONFIRM_EMAIL: Final = """
    UPDATE users
       SET email_confirmed_at = coalesce(email_confirmed_at, $3)
     WHERE user_id = $1
       AND email_key = $2
    RETURNING user_id
"""

# The look decides nothing: it keeps PostgreSQL from logging the email address of a violation.
CHANGE_EMAIL: Final = """
    UPDATE users
       SET email = $2, email_key = $3, email_confirmed_at = $4,
           email_verdict = NULL, email_verdict_source = NULL, email_checked_at = NULL
     WHERE user_id = $1
       AND erased_at IS NULL
       AND NOT EXISTS (SELECT FROM users WHERE email_key = $3 AND user_id <> $1)
    RETURNING user_id
"""

LOCK: Final = """
    SELECT email, email_key, email_confirmed_at IS NOT NULL AS email_confirmed
      FROM users
     WHERE user_id = $1
       AND erased_at IS NULL
       FOR UPDATE
"""

LOCK_BY_EMAIL: Final = """
    SELECT user_id, role, email_confirmed_at IS NOT NULL AS email_confirmed
      FROM users
     WHERE email_key = $1
       FOR UPDATE
"""

# All of them in one order: of two admins who disable each other, one waits, and then sees what the
# other has done. NO KEY, because registrations with an admin's code hold a key lock on the admin
# behind the code's, and this lock is taken before the code's.
LOCK_ADMINS: Final = """
    SELECT user_id
      FROM users
     WHERE role = 'admin'
       AND disabled_at IS NULL
       AND erased_at IS NULL
       AND EXISTS (
           SELECT FROM users
            WHERE user_id = $1
              AND role = 'admin'
              AND disabled_at IS NULL
              AND erased_at IS NULL
       )
     ORDER BY user_id
       FOR NO KEY UPDATE
"""

LIST_ADMINS: Final = """
    SELECT user_id, email, email_confirmed_at, promoted_at, disabled_at
      FROM users
     WHERE role = 'admin'
       AND erased_at IS NULL
     ORDER BY promoted_at NULLS FIRST, user_id
"""

IDS_BEHIND: Final = """
    SELECT user_id
      FROM users
     WHERE user_id > $1
       AND erased_at IS NULL
     ORDER BY user_id
     LIMIT $2
"""

SET_HASH: Final = """
    UPDATE users
       SET password_hash = $2
     WHERE user_id = $1
"""

# Of the e-mail that was asked about, which may have been changed meanwhile.
SET_VERIFICATION: Final = """
    UPDATE users
       SET email_verdict = $3, email_verdict_source = $4, email_checked_at = $5,
           confirmation_required = confirmation_required OR $6
     WHERE user_id = $1
       AND email_key = $2
"""

SET_ROLE: Final = """
    UPDATE users
       SET role = $2, promoted_at = $3
     WHERE user_id = $1
"""


class UserRepository:
    """Accounts, one statement a method."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(
        self,
        user_id: UUID,
        email: Email,
        password_hash: str | None,
        role: Role,
        now: datetime,
        *,
        email_confirmed_at: datetime | None = None,
        confirmation_required: bool = False,
        verification: Verification | None = None,
    ) -> None:
        """Store a new account; raise EmailTaken where one has the e-mail already.

        Without a password's hash its user signs in with another issuer.
        """
        columns = (
            user_id,
            email.shown,
            email.key,
            password_hash,
            role,
            now,
            email_confirmed_at,
            confirmation_required,
            verification and verification.verdict,
            verification and verification.source,
            verification and verification.checked_at,
        )
        for _ in range(2):  # whoever had the email address may have given it up since
            if await self._found(INSERT, *columns):
                return
            if await self.find_by_email(email.key) is not None:
                raise EmailTaken
        raise RuntimeError("a constraint that nobody expected keeps an account out")

    async def find(self, user_id: UUID) -> User | None:
        row = await self._connection.fetchrow(FIND, user_id)
        return None if row is None else _user(row)

    async def find_several(self, user_ids: Sequence[UUID]) -> dict[UUID, User]:
        rows = await self._connection.fetch(FIND_SEVERAL, user_ids)
        return {user.user_id: user for user in map(_user, rows)}

    async def find_by_email(self, email_key: str) -> User | None:
        row = await self._connection.fetchrow(FIND_BY_EMAIL, email_key)
        return None if row is None else _user(row)

    async def newest(self, limit: int, behind: Cursor | None) -> list[User]:
        """Return up to `limit` accounts, newest first, those behind the cursor if there is one."""
        if behind is None:
            rows = await self._connection.fetch(NEWEST, limit)
        else:
            rows = await self._connection.fetch(NEWEST_BEHIND, limit, behind.at, behind.row_id)
        return [_user(row) for row in rows]

    async def find_credentials_by_email(self, email_key: str) -> Credentials | None:
        row = await self._connection.fetchrow(FIND_CREDENTIALS_BY_EMAIL, email_key)
        return None if row is None else _credentials(row)

    async def find_credentials(self, user_id: UUID) -> Credentials | None:
        row = await self._connection.fetchrow(FIND_CREDENTIALS, user_id)
        return None if row is None else _credentials(row)

    async def find_email_key(self, user_id: UUID) -> str | None:
        """Return the e-mail key of an account that is not erased."""
        key: str | None = await self._connection.fetchval(FIND_EMAIL_KEY, user_id)
        return key

    async def is_unconfirmed(self, user_id: UUID) -> bool:
        """Return whether the account has an email address that was never confirmed."""
        found: bool = await self._connection.fetchval(IS_UNCONFIRMED, user_id)
        return found

    async def replace_password_hash(self, user_id: UUID, old: str, new: str) -> bool:
        """Store `new` where the hash is still `old`; return whether it was."""
        return await self._found(REPLACE_HASH, user_id, old, new)

    async def set_disabled(self, user_id: UUID, at: datetime | None) -> tuple[str, bool] | None:
        """Disable the account from `at`, or enable it; return None if it does not exist.

        Otherwise its email key, and whether it was the other way before.
        """
        row = await self._connection.fetchrow(SET_DISABLED, user_id, at)
        return None if row is None else (row["email_key"], row["changed"])

    async def erase(self, user_id: UUID, password_hash: str | None, now: datetime) -> bool:
        """Remove all personal data where the hash is still the one given; return whether it was.

        None is the hash of an account without a password.
        """
        return await self._found(ERASE, user_id, password_hash, now)

    async def confirm_email(self, user_id: UUID, email_key: str, now: datetime) -> bool:
        """Note that the e-mail is the account's; return whether it is still this one."""
        return await self._found(CONFIRM_EMAIL, user_id, email_key, now)

    async def change_email(
        self, user_id: UUID, email: Email, confirmed_at: datetime | None
    ) -> None:
        """Store another email address of an account that is not erased, and when it was confirmed.

        Raises EmailTaken.
        """
        with on_violation({"users_email_unique": EmailTaken}):
            changed = await self._found(CHANGE_EMAIL, user_id, email.shown, email.key, confirmed_at)
        if not changed:
            raise EmailTaken

    async def lock(self, user_id: UUID) -> tuple[Email, bool] | None:
        """Return the e-mail and whether it is confirmed; both stay until the transaction ends."""
        row = await self._connection.fetchrow(LOCK, user_id)
        if row is None:
            return None
        return Email(row["email"], row["email_key"]), row["email_confirmed"]

    async def lock_by_email(self, email_key: str) -> tuple[UUID, Role, bool] | None:
        """Return the account's id, its role, and whether the email address is confirmed.

        All of it stays until the transaction ends.
        """
        row = await self._connection.fetchrow(LOCK_BY_EMAIL, email_key)
        return None if row is None else (row["user_id"], Role(row["role"]), row["email_confirmed"])

    async def lock_admins(self, user_id: UUID) -> list[UUID]:
        """Return all admins who can act, if this is one: all stay so until the transaction ends."""
        return [row["user_id"] for row in await self._connection.fetch(LOCK_ADMINS, user_id)]

    async def list_admins(self) -> list[Admin]:
        """Return all admins: they are made by hand, and few."""
        return [
            Admin(
                user_id=row["user_id"],
                email=row["email"],
                email_confirmed=row["email_confirmed_at"] is not None,
                promoted_at=row["promoted_at"],
                disabled=row["disabled_at"] is not None,
            )
            for row in await self._connection.fetch(LIST_ADMINS)
        ]

    async def ids_behind(self, user_id: UUID, limit: int) -> list[UUID]:
        """Return up to `limit` ids of accounts, in order, behind that one."""
        return [row["user_id"] for row in await self._connection.fetch(IDS_BEHIND, user_id, limit)]

    async def set_password_hash(self, user_id: UUID, password_hash: str | None) -> None:
        await self._connection.execute(SET_HASH, user_id, password_hash)

    async def set_verification(
        self, user_id: UUID, email_key: str, verification: Verification, *, confirm: bool
    ) -> None:
        """Store the verdict on the account's e-mail, and whether it has to be confirmed now."""
        await self._connection.execute(
            SET_VERIFICATION,
            user_id,
            email_key,
            verification.verdict,
            verification.source,
            verification.checked_at,
            confirm,
        )

    async def set_role(self, user_id: UUID, role: Role, promoted_at: datetime | None) -> None:
        """Give the account another role, an admin's from `promoted_at`."""
        await self._connection.execute(SET_ROLE, user_id, role, promoted_at)

    async def _found(self, statement: str, *arguments: Any) -> bool:
        return await self._connection.fetchval(statement, *arguments) is not None


def _user(row: Any) -> User:
    (
        user_id,
        email,
        role,
        created_at,
        email_confirmed_at,
        disabled_at,
        confirmation_required,
        verdict,
        source,
        checked_at,
        referrer_id,
        referral_flags,
    ) = row
    verification = None
    if verdict is not None:
        verification = Verification(verdict=Verdict(verdict), source=source, checked_at=checked_at)
    return User(
        user_id=user_id,
        email=email,
        email_confirmed=email_confirmed_at is not None,
        role=Role(role),
        created_at=created_at,
        disabled=disabled_at is not None,
        referrer_id=referrer_id,
        awaits_confirmation=confirmation_required and email_confirmed_at is None,
        email_verification=verification,
        referral_flags=tuple(referral_flags or ()),
    )


def _credentials(row: Any) -> Credentials:
    return Credentials(
        user_id=row["user_id"],
        role=Role(row["role"]),
        password_hash=row["password_hash"],
        disabled=row["disabled_at"] is not None,
        email_confirmed=row["email_confirmed_at"] is not None,
        awaits_confirmation=row["awaits_confirmation"],
    )
