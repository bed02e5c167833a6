"""What can be done with referrals."""

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from service.domain.errors import NotAllowed, UserNotFound
from service.domain.pages import Cursor, Page
from service.domain.referrals import Referral
from service.domain.users import Role
from service.postgresql.batch_loader import BatchLoader
from service.postgresql.database import Database

MOST_PAGES: Final = 50
"""Pages read by one statement; a page has up to a hundred rows."""


class _Wanted(NamedTuple):
    referrer_id: UUID
    after: Cursor | None
    limit: int


class Referrals:
    """Who registered with whose code."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pages = BatchLoader[_Wanted, list[Referral]](self._read, MOST_PAGES)

    async def page(
        self, caller_id: UUID | None, referrer_id: UUID | None, limit: int, after: Cursor | None
    ) -> Page[Referral]:
        """Return a page of the referrer's referrals, newest first.

        For the referrer, admins, and clients on their own behalf (`caller_id` is None); anyone else
        gets NotAllowed, whether or not the referrer exists. `referrer_id` None is an id that no
        account can have. Admins and clients get UserNotFound.
        """
        if caller_id is None or referrer_id != caller_id:
            async with self._database.autocommit() as repositories:
                caller = caller_id and await repositories.users.find(caller_id)
                if caller_id and (not caller or caller.role is not Role.ADMIN):
                    raise NotAllowed("Referrals are shown to their referrer alone.")
                if referrer_id is None or await repositories.users.find(referrer_id) is None:
                    raise UserNotFound
        assert referrer_id is not None
        referrals = await self._pages.find(_Wanted(referrer_id, after, limit + 1)) or []
        return Page.of(referrals, limit, lambda last: Cursor(last.registered_at, last.user_id))

    async def _read(self, wanted: Sequence[_Wanted]) -> dict[_Wanted, list[Referral]]:
        found: dict[_Wanted, list[Referral]] = {}
        for limit in {one.limit for one in wanted}:
            alike = [one for one in wanted if one.limit == limit]
            found.update(zip(alike, await self._newest_of(alike, limit), strict=True))
        return found

    async def _newest_of(self, wanted: Sequence[_Wanted], limit: int) -> list[list[Referral]]:
        places = [(one.referrer_id, one.after) for one in wanted]
        return await self._database.from_standby(
            lambda stored: stored.referrals.newest_of_several(places, limit)
        )
