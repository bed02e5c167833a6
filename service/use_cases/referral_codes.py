"""What can be done with referral codes."""

from collections.abc import Callable
from functools import partial
from uuid import UUID

from service.domain.emails import key_of
from service.domain.errors import (
    EmailMalformed,
    InvalidInput,
    LiveReferralCodeExists,
    ReferralCodeNotFound,
    ReferralCodeTaken,
)
from service.domain.pages import Cursor, Page
from service.domain.referral_codes import (
    NewReferralCode,
    OwnReferralCode,
    PublicReferralCode,
    ReferralCode,
    ReferralCodeChange,
    change_referral_code,
    issue_referral_code,
    normalise_code,
)
from service.postgresql.batch_loader import BatchLoader
from service.postgresql.database import Repositories, TryAgain, retried
from service.redis.cache import Cache, Entry, Lookup
from service.use_cases.cache_invalidation import CODE_KEY, code_key
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.locks import end_code, lock_live_code
from service.use_cases.shared import Shared


class ReferralCodes:
    """A user's codes: making, changing, replacing, ending, finding, listing.

    Where addresses have to be confirmed, a user who has not done so has none.
    """

    def __init__(self, shared: Shared, cache: Cache) -> None:
        self._database = database = shared.database
        self._cache = cache
        self._invalidation = shared.invalidation
        self._clock = clock = shared.clock
        self._confirmed_only = confirmed_only = shared.confirmation_required
        self._live_by_email = BatchLoader[str, PublicReferralCode](
            lambda email_keys: database.read(
                lambda stored: stored.referral_codes.find_live_by_emails(
                    email_keys, clock(), confirmed_only=confirmed_only
                )
            )
        )

    @retried
    async def create(
        self, owner_id: UUID, wish: NewReferralCode, once: AnswerOnce[ReferralCode]
    ) -> ReferralCode:
        """Issue a code.

        Raises LiveReferralCodeExists, ReferralCodeTaken, EmailNotConfirmed, or a rule that the
        wish breaks.
        """
        now = self._clock()
        async with once.around(self._database) as repositories:
            # First, because an expiry that was allowed then may be in the past now.
            await once.claim(repositories, now)
            code = issue_referral_code(owner_id, wish, now)
            await self._store(repositories, code, wish)
            await once.keep(repositories, code, owner_id)
        return code

    @retried
    async def replace(self, owner_id: UUID, wish: NewReferralCode) -> tuple[ReferralCode, bool]:
        """Issue a code in place of the live one; return it, and whether there was one.

        Raises ReferralCodeTaken, EmailNotConfirmed, or a rule that the wish breaks; the live one
        then lives on.
        """
        now = self._clock()
        code = issue_referral_code(owner_id, wish, now)
        try:
            async with self._database.autocommit() as repositories:
                return code, await self._store(repositories, code, wish, replacing=True)
        except LiveReferralCodeExists:
            # Other requests replace it too: they do so one after the other.
            async with self._database.transaction() as repositories:
                await repositories.users.hold(owner_id)
                try:
                    return code, await self._store(repositories, code, wish, replacing=True)
                except LiveReferralCodeExists as error:
                    raise TryAgain from error

    @retried
    async def change(self, owner_id: UUID, change: ReferralCodeChange) -> ReferralCode:
        """Give the live code another expiry or limit, keeping its uses; return it.

        A limit that is already reached ends it, as the last use would have. Raises
        ReferralCodeNotFound, EmailNotConfirmed, InvalidInput or ExpiryOutOfRange.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            code = await lock_live_code(
                repositories, owner_id, now, confirmed_only=self._confirmed_only
            )
            changed = change_referral_code(code, change, now)
            if email_key := await repositories.referral_codes.change(changed, now):
                await self._invalidation.invalidate(repositories, [code_key(email_key)], now)
        return changed

    async def find(self, owner_id: UUID) -> ReferralCode:
        """Return the owner's live code; raise ReferralCodeNotFound."""
        async with self._database.autocommit() as repositories:
            code = await repositories.referral_codes.find_usable(owner_id, self._clock())
        if code is None:
            raise ReferralCodeNotFound
        return code

    async def page(self, owner_id: UUID, limit: int, after: Cursor | None) -> Page[OwnReferralCode]:
        """Return a page of all the owner's codes, newest first."""
        now = self._clock()
        codes = await self._database.from_standby(
            lambda stored: stored.referral_codes.newest_of_owner(owner_id, now, limit + 1, after)
        )
        return Page.of(codes, limit, lambda last: Cursor(last.created_at, last.referral_code_id))

    @retried
    async def delete(self, owner_id: UUID) -> None:
        """End the owner's live code; raise ReferralCodeNotFound."""
        now = self._clock()
        async with self._database.autocommit() as repositories:
            found = await end_code(repositories, owner_id, now)
        if email_key := found.owner_email_key:  # the statement has planned the job
            await self._invalidation.forget([code_key(email_key)])
        if not found.was_live:
            raise ReferralCodeNotFound

    async def find_by_code(self, text: str) -> PublicReferralCode:
        """Return the live code that `text` stands for; raise ReferralCodeNotFound."""
        try:
            typed = normalise_code(text)
        except InvalidInput as error:
            raise ReferralCodeNotFound from error
        async with self._database.autocommit() as repositories:
            code = await repositories.referral_code_uses.find_public(
                typed, self._clock(), confirmed_only=self._confirmed_only
            )
        if code is None:
            raise ReferralCodeNotFound
        return code

    def look_up(self, email: str) -> Lookup | None:
        """Start to look for the code of an account in the cache; None if it can have none.

        What else is asked of Redis before anything is awaited travels together with it.
        """
        try:
            return self._cache.look_up(code_key(key_of(email)))
        except EmailMalformed:
            return None

    async def find_by_email(
        self, lookup: Lookup | None, write: Callable[[PublicReferralCode], bytes]
    ) -> bytes:
        """Return the live code of the account that was looked up, as `write` writes it.

        Raises ReferralCodeNotFound, also for an email address that nobody has: a stranger learns
        nothing from it. The bytes are kept in the cache, for everyone who asks next.
        """
        if lookup is None:
            raise ReferralCodeNotFound

        async def load() -> Entry | None:
            code = await self._live_by_email.find(lookup.key.removeprefix(CODE_KEY))
            return None if code is None else Entry(write(code), code.expires_at)

        kept = await self._cache.finish(lookup, load)
        if kept is None:
            raise ReferralCodeNotFound
        return kept

    async def _store(
        self,
        repositories: Repositories,
        code: ReferralCode,
        wish: NewReferralCode,
        *,
        replacing: bool = False,
    ) -> bool:
        """Store the code; return whether it replaced one."""
        try:
            email_key, replaced = await repositories.referral_codes.add(
                code, CODE_KEY, confirmed_only=self._confirmed_only, replacing=replacing
            )
        except ReferralCodeTaken as error:
            if wish.code is not None:
                raise
            raise TryAgain from error  # the next try draws another one
        # The statement has planned the job.
        repositories.after_commit(partial(self._invalidation.forget, [code_key(email_key)]))
        return replaced
