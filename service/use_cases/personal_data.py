"""What is stored about an account, for operators who look for it, or export it."""

import re
from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import UUID

from service.domain.emails import parse_email
from service.domain.errors import UserNotFound
from service.domain.pages import Cursor
from service.domain.referral_codes import ReferralCode
from service.domain.users import User
from service.postgresql.database import Repositories
from service.use_cases.shared import Shared

AT_ONCE: Final = 10_000
"""Rows that one statement reads."""
_LOG_HASH: Final = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An account, its live code, and its pseudonym in the log."""

    user: User
    code: ReferralCode | None
    log_hash: str


class PersonalData:
    """Finding and exporting accounts."""

    def __init__(self, shared: Shared) -> None:
        self._database = shared.database
        self._events = shared.events
        self._clock = shared.clock

    async def find(self, text: str) -> Found:
        """Return the account with that email address, id or hash from the log.

        Raises UserNotFound. Looking for a hash takes a second per million accounts.
        """
        async with self._database.autocommit() as repositories:
            user = await self._find(repositories, text)
            if user is None:
                raise UserNotFound(f"There is no account {text}.")
            code = await repositories.referral_codes.find_live(user.user_id, self._clock())
        return Found(
            user=user,
            code=None if user.disabled else code,
            log_hash=self._events.account_hash(user.user_id),
        )

    async def export(self, user_id: UUID) -> dict[str, Any]:
        """Return all that is stored about the account; raise UserNotFound."""
        async with self._database.autocommit() as repositories:
            stored = repositories.personal_data
            account = await stored.account(user_id)
            if account is None:
                raise UserNotFound
            enrichment = await repositories.enrichments.find(user_id)
            found = await stored.of_user(user_id)
            return {
                "account": account,
                **found,
                "participant": next(iter(found["participant"]), None),
                "referral": next(iter(found["referral"]), None),
                "referrals": await _all_referrals(repositories, user_id),
                "enrichment": enrichment and asdict(enrichment),
            }

    async def _find(self, repositories: Repositories, text: str) -> User | None:
        if "@" in text:
            return await repositories.users.find_by_email(parse_email(text).key)
        user_id: UUID | None
        if _LOG_HASH.fullmatch(text.lower()):
            user_id = await self._of_hash(repositories, text.lower())
        else:
            try:
                user_id = UUID(text)
            except ValueError as error:
                raise UserNotFound(
                    f"{text} is neither an email address nor an id nor a hash from the log."
                ) from error
        return None if user_id is None else await repositories.users.find(user_id)

    async def _of_hash(self, repositories: Repositories, log_hash: str) -> UUID | None:
        """Return whose hash it is, by trying all accounts."""
        last = UUID(int=0)
        while ids := await repositories.users.ids_after(last, AT_ONCE):
            for user_id in ids:
                if self._events.account_hash(user_id) == log_hash:
                    return user_id
            last = ids[-1]
        return None


async def _all_referrals(repositories: Repositories, user_id: UUID) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = None
    while page := await repositories.personal_data.referrals(user_id, AT_ONCE, after):
        found += page
        after = Cursor(page[-1]["registered_at"], page[-1]["id"])
    return found
