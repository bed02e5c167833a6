"""What can be done with referrals."""

from uuid import UUID

from service.database import Database, Repositories
from service.domain.errors import NotAllowed, UserNotFound
from service.domain.pages import Cursor, Page
from service.domain.referrals import Referral
from service.domain.users import Role


class Referrals:
    """Who registered with whose code."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self,
        caller_id: UUID | None,
        referrer_id: UUID | None,
        limit: int,
        behind: Cursor | None,
    ) -> Page[Referral]:
        """Return a page of the referrer's referrals, newest first.

        For the referrer, for admins, and for clients that speak for themselves (`caller_id` is
        None); anyone else gets NotAllowed, whether there is such a referrer or not.
        `referrer_id` None is an id that nobody can have. Who may see all gets UserNotFound.
        """

        async def read(repositories: Repositories) -> list[Referral]:
            if caller_id is None or referrer_id != caller_id:
                caller = caller_id and await repositories.users.find(caller_id)
                if caller_id and (not caller or caller.role is not Role.ADMIN):
                    raise NotAllowed("Referrals are shown to their referrer alone.")
                if referrer_id is None or await repositories.users.find(referrer_id) is None:
                    raise UserNotFound
            assert referrer_id is not None
            return await repositories.referrals.newest_of(referrer_id, limit + 1, behind)

        referrals = await self._database.listing(read)
        return Page.of(
            referrals, limit, lambda referral: Cursor(referral.registered_at, referral.user_id)
        )
