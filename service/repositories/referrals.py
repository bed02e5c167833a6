"""The SQL of referrals."""

from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.errors import ReferralCodeUnusable
from service.domain.pages import Cursor
from service.domain.referrals import Referral
from service.repositories.connection import Connection
from service.repositories.constraints import on_violation

INSERT: Final = """
    INSERT INTO referrals (user_id, referrer_id, code, registered_at, email_hash)
    VALUES ($1, $2, $3, $4, $5)
"""

NEWEST_OF: Final = """
    SELECT r.user_id, u.email, r.registered_at, r.code
      FROM referrals r
      JOIN users u ON u.user_id = r.user_id
     WHERE r.referrer_id = $1
     ORDER BY r.registered_at DESC, r.user_id DESC
     LIMIT $2
"""

NEWEST_OF_BEHIND: Final = """
    SELECT r.user_id, u.email, r.registered_at, r.code
      FROM referrals r
      JOIN users u ON u.user_id = r.user_id
     WHERE r.referrer_id = $1
       AND (r.registered_at, r.user_id) < ($3, $4)
     ORDER BY r.registered_at DESC, r.user_id DESC
     LIMIT $2
"""


class ReferralRepository:
    """Referrals, one statement a method."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(
        self, user_id: UUID, referrer_id: UUID, code: str, now: datetime, email_hash: bytes
    ) -> None:
        """Store who referred the user; raise ReferralCodeUnusable if the e-mail once was."""
        with on_violation({"referrals_email_referred_once": ReferralCodeUnusable}):
            await self._connection.execute(INSERT, user_id, referrer_id, code, now, email_hash)

    async def newest_of(
        self, referrer_id: UUID, limit: int, behind: Cursor | None
    ) -> list[Referral]:
        """Return up to `limit` referrals, newest first, those behind the cursor if there is one."""
        if behind is None:
            rows = await self._connection.fetch(NEWEST_OF, referrer_id, limit)
        else:
            rows = await self._connection.fetch(
                NEWEST_OF_BEHIND, referrer_id, limit, behind.at, behind.row_id
            )
        return [
            Referral(user_id=user_id, email=email, registered_at=registered_at, code=code)
            for user_id, email, registered_at, code in rows
        ]
