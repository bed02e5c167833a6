"""The SQL of accounts."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from service.domain.email_verification import Verdict, Verification
from service.domain.emails import Email
from service.domain.errors import EmailTaken
from service.domain.pages import Cursor
from service.domain.sessions import Credentials
from service.domain.users import Admin, LockedUser, Role, User
from service.repositories.connection import LAST_ID, Repository
from service.repositories.constraints import on_violation

# ON CONFLICT, because PostgreSQL would log the email address of a violation, and abort the
# transaction.
INSERT: Final = """
    INSERT INTO users (user_id, email, email_key, password_hash, role, created_at,
                       email_confirmed_at, confirmation_required,
                       email_verdict, email_verdict_source, email_checked_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT DO NOTHING
    RETURNING user_id
"""

_SELECT: Final = """
    SELECT u.user_id, u.email, u.email_confirmed_at IS NOT NULL AS email_confirmed, u.role,
           u.created_at, u.disabled_at IS NOT NULL AS disabled, r.referrer_id,
           u.confirmation_required AND u.email_confirmed_at IS NULL AS awaits_confirmation,
           u.email_verdict, u.email_verdict_source, u.email_checked_at,
           coalesce(r.flags, '{}') AS referral_flags
      FROM users u
      LEFT JOIN referrals r ON r.user_id = u.user_id
"""

FIND_SEVERAL: Final = f"""
    {_SELECT}
     WHERE u.user_id = ANY (ARRAY(SELECT unnest($1::uuid[])))
       AND u.erased_at IS NULL
"""

FIND_BY_EMAIL: Final = f"""
    {_SELECT}
     WHERE u.email_key = $1
"""

NEWEST: Final = f"""
    {_SELECT}
     WHERE u.erased_at IS NULL
       AND (u.created_at, u.user_id) < (coalesce($2::timestamptz, 'infinity'), $3)
     ORDER BY u.created_at DESC, u.user_id DESC
     LIMIT $1
"""

_SELECT_CREDENTIALS: Final = """
    SELECT user_id, role, password_hash, disabled_at IS NOT NULL AS disabled,
           email_confirmed_at IS NOT NULL AS email_confirmed,
           confirmation_required AND email_confirmed_at IS NULL AS awaits_confirmation
      FROM users
     WHERE password_hash IS NOT NULL
"""

FIND_CREDENTIALS_BY_EMAIL: Final = f"{_SELECT_CREDENTIALS} AND email_key = $1"

FIND_CREDENTIALS: Final = f"{_SELECT_CREDENTIALS} AND user_id = $1"

FIND_EMAIL_KEY: Final = """
    SELECT email_key
      FROM users
     WHERE user_id = $1
"""

FIND_CONFIRMATION: Final = """
    SELECT email_confirmed_at
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

# NOT EXISTS decides nothing: it keeps PostgreSQL from logging the email address of a violation.
CHANGE_EMAIL: Final = """
    UPDATE users
       SET email = $2, email_key = $3, email_confirmed_at = $4,
           email_verdict = NULL, email_verdict_source = NULL, email_checked_at = NULL
     WHERE user_id = $1
       AND erased_at IS NULL
       AND NOT EXISTS (SELECT FROM users WHERE email_key = $3 AND user_id <> $1)
    RETURNING user_id
"""

_SELECT_TO_LOCK: Final = """
    SELECT user_id, role, email, email_key, email_confirmed_at IS NOT NULL AS email_confirmed
      FROM users
     WHERE erased_at IS NULL
"""

LOCK: Final = f"{_SELECT_TO_LOCK} AND user_id = $1 FOR UPDATE"

LOCK_BY_EMAIL: Final = f"{_SELECT_TO_LOCK} AND email_key = $1 FOR UPDATE"

# Weaker than LOCK, so that registrations with the account's code, which hold a key lock on it, do
# not wait.
HOLD: Final = f"{_SELECT_TO_LOCK} AND user_id = $1 FOR NO KEY UPDATE"

# All in one order: of two admins who disable each other, one waits and then sees what the other
# did. NO KEY for the same reason as in HOLD.
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
    SELECT user_id, email, email_confirmed_at IS NOT NULL AS email_confirmed, promoted_at,
           disabled_at IS NOT NULL AS disabled
      FROM users
     WHERE role = 'admin'
       AND erased_at IS NULL
     ORDER BY promoted_at NULLS FIRST, user_id
"""

IDS_AFTER: Final = """
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

# The email address that was checked may have been changed since.
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


class UserRepository(Repository):
    """Accounts: one statement per method."""

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
        """Store a new account; raise EmailTaken if another has the email address.

        Without a password hash its user signs in with another issuer.
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
        for _ in range(2):  # the account that had the email address may have given it up since
            if await self._found(INSERT, *columns):
                return
            if await self.find_by_email(email.key) is not None:
                raise EmailTaken
        raise RuntimeError("an unexpected constraint rejects the account")

    async def find(self, user_id: UUID) -> User | None:
        return (await self.find_several([user_id])).get(user_id)

    async def find_several(self, user_ids: Sequence[UUID]) -> dict[UUID, User]:
        rows = await self._connection.fetch(FIND_SEVERAL, user_ids)
        return {user.user_id: user for user in map(_user, rows)}

    async def find_by_email(self, email_key: str) -> User | None:
        return await self._one(_user, FIND_BY_EMAIL, email_key)

    async def newest(self, limit: int, after: Cursor | None) -> list[User]:
        """Return up to `limit` accounts, newest first, starting after the cursor."""
        at, last_id = (after.at, after.row_id) if after else (None, LAST_ID)
        return [_user(row) for row in await self._connection.fetch(NEWEST, limit, at, last_id)]

    async def find_credentials_by_email(self, email_key: str) -> Credentials | None:
        return await self._one(_credentials, FIND_CREDENTIALS_BY_EMAIL, email_key)

    async def find_credentials(self, user_id: UUID) -> Credentials | None:
        return await self._one(_credentials, FIND_CREDENTIALS, user_id)

    async def find_email_key(self, user_id: UUID) -> str | None:
        """Return the key of the account's email address; None if it is erased."""
        key: str | None = await self._connection.fetchval(FIND_EMAIL_KEY, user_id)
        return key

    async def find_confirmation(self, user_id: UUID) -> datetime | None:
        """Return when the account's email address was first confirmed."""
        found: datetime | None = await self._connection.fetchval(FIND_CONFIRMATION, user_id)
        return found

    async def is_unconfirmed(self, user_id: UUID) -> bool:
        """Return whether the account has an email address that was never confirmed."""
        return bool(await self._connection.fetchval(IS_UNCONFIRMED, user_id))

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
        """Mark the email address as confirmed; return False if the account has another by now."""
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

    async def lock(self, user_id: UUID) -> LockedUser | None:
        """Return the account as it stays until the transaction ends; None if it is erased."""
        return await self._one(_locked, LOCK, user_id)

    async def lock_by_email(self, email_key: str) -> LockedUser | None:
        return await self._one(_locked, LOCK_BY_EMAIL, email_key)

    async def hold(self, user_id: UUID) -> LockedUser | None:
        """Do as `lock`, but without making registrations with the account's code wait."""
        return await self._one(_locked, HOLD, user_id)

    async def lock_admins(self, user_id: UUID) -> list[UUID]:
        """Return all admins who can act, if this is one; all stay so until the transaction ends."""
        return [row["user_id"] for row in await self._connection.fetch(LOCK_ADMINS, user_id)]

    async def list_admins(self) -> list[Admin]:
        """Return all admins: they are made by hand, and few."""
        return [Admin(**row) for row in await self._connection.fetch(LIST_ADMINS)]

    async def ids_after(self, user_id: UUID, limit: int) -> list[UUID]:
        """Return up to `limit` ids of accounts, in order, after that one."""
        return [row["user_id"] for row in await self._connection.fetch(IDS_AFTER, user_id, limit)]

    async def set_password_hash(self, user_id: UUID, password_hash: str | None) -> None:
        await self._connection.execute(SET_HASH, user_id, password_hash)

    async def set_verification(
        self, user_id: UUID, email_key: str, verification: Verification, *, confirm: bool
    ) -> None:
        """Store the verdict on the email address, and whether it must be confirmed from now on."""
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


def _user(row: Any) -> User:
    columns = dict(row)
    verdict = columns.pop("email_verdict")
    source, at = columns.pop("email_verdict_source"), columns.pop("email_checked_at")
    columns["email_verification"] = (
        None
        if verdict is None
        else Verification(verdict=Verdict(verdict), source=source, checked_at=at)
    )
    columns["role"] = Role(row["role"])
    columns["referral_flags"] = tuple(row["referral_flags"])
    return User(**columns)


def _locked(row: Any) -> LockedUser:
    columns = dict(row)
    email = Email(columns.pop("email"), columns.pop("email_key"))
    return LockedUser(**{**columns, "role": Role(row["role"]), "email": email})


def _credentials(row: Any) -> Credentials:
    return Credentials(**{**row, "role": Role(row["role"])})
