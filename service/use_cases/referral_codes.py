"""What can be done with referral codes."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from service.domain.clock import Clock
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
    check_expiry,
    issue_referral_code,
    normalise_code,
)
from service.domain.users import key_of
from service.postgresql.batch_loader import BatchLoader
from service.postgresql.database import Database, Repositories, TransactionConflict, retried
from service.redis.cache import Cache, Entry, Lookup
from service.use_cases.cache_invalidation import CODE_KEY, CacheInvalidation, code_key
from service.use_cases.idempotency import AnswerOnce


class ReferralCodes:
    """A user's codes: making, changing, replacing, ending, finding, listing.

    With `confirmed_only` a user whose email address is not confirmed has none.
    """

    def __init__(
        self,
        database: Database,
        cache: Cache,
        invalidation: CacheInvalidation,
        clock: Clock,
        *,
        confirmed_only: bool,
    ) -> None:
        self._database = database
        self._cache = cache
        self._invalidation = invalidation
        self._clock = clock
        self._confirmed_only = confirmed_only
        self._live_by_email = BatchLoader[str, PublicReferralCode](
            lambda email_keys: database.read(
                lambda stored: stored.referral_codes.find_live_by_emails(
                    email_keys, clock(), confirmed_only=confirmed_only
                )
            )
        )

    def check_expiry(self, expires_at: datetime) -> None:
        """Raise ExpiryOutOfRange unless a code may expire then."""
        check_expiry(expires_at, self._clock())

    @retried
    async def create(
        self, owner_id: UUID, wish: NewReferralCode, once: AnswerOnce[ReferralCode]
    ) -> ReferralCode:
        """Issue a code.

        Raises LiveReferralCodeExists, ReferralCodeTaken, EmailNotConfirmed, or what the wish
        breaks.
        """
        now = self._clock()
        async with once.around(self._database) as repositories:
            # First of all: what was allowed then may be too late now.
            await once.claim(repositories, now)
            code = issue_referral_code(owner_id, wish, now)
            keys, _ = await self._store(repositories, code, wish)
            await once.keep(repositories, code, owner_id)
        await self._invalidation.forget(keys)
        return code

    @retried
    async def replace(self, owner_id: UUID, wish: NewReferralCode) -> tuple[ReferralCode, bool]:
        """Issue a code in place of the live one; return it, and whether there was one.

        Raises ReferralCodeTaken, EmailNotConfirmed, or what the wish breaks; then the live one
        lives on.
        """
        now = self._clock()
        code = issue_referral_code(owner_id, wish, now)
        try:
            async with self._database.autocommit() as repositories:
                keys, replaced = await self._store(repositories, code, wish, replacing=True)
        except LiveReferralCodeExists:
            # Others replace it as well: they do so one after the other.
            async with self._database.transaction() as repositories:
                await repositories.referral_codes.lock_owner(owner_id)
                try:
                    keys, replaced = await self._store(repositories, code, wish, replacing=True)
                except LiveReferralCodeExists as error:
                    raise TransactionConflict from error
        await self._invalidation.forget(keys)
        return code, replaced

    @retried
    async def change(self, owner_id: UUID, change: ReferralCodeChange) -> ReferralCode:
        """Give the live code another expiry or limit, its uses kept; return it as it is then.

        A limit that its uses have reached ends it, as the last use would have. Raises
        ReferralCodeNotFound, EmailNotConfirmed, InvalidInput or ExpiryOutOfRange.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            codes = repositories.referral_codes
            locked = await codes.lock_live(owner_id, confirmed_only=self._confirmed_only)
            # Read afterwards: registrations that the lock has waited for have counted their uses.
            code = await codes.find_live(owner_id, now)
            if code is None:
                raise ReferralCodeNotFound
            if code.referral_code_id != locked:
                raise TransactionConflict  # made while the lock waited for the one before
            changed = change_referral_code(code, change, now)
            email_key = await codes.change(changed, now, CODE_KEY)
        await self._invalidation.forget([code_key(email_key)] if email_key else [])
        return changed

    async def find(self, owner_id: UUID) -> ReferralCode:
        """Return the owner's live code; raise ReferralCodeNotFound."""
        async with self._database.autocommit() as repositories:
            code = await repositories.referral_codes.find_live(owner_id, self._clock())
        if code is None:
            raise ReferralCodeNotFound
        return code

    async def page(
        self, owner_id: UUID, limit: int, behind: Cursor | None
    ) -> Page[OwnReferralCode]:
        """Return a page of all the owner's codes, newest first."""
        now = self._clock()
        codes = await self._database.from_standby(
            lambda stored: stored.referral_codes.newest_of_owner(owner_id, now, limit + 1, behind)
        )
        return Page.of(codes, limit, lambda last: Cursor(last.created_at, last.referral_code_id))

    @retried
    async def delete(self, owner_id: UUID) -> None:
        """End the owner's live code; raise ReferralCodeNotFound."""
        now = self._clock()
        async with self._database.autocommit() as repositories:
            ended = await repositories.referral_codes.end_of_owner(owner_id, now, CODE_KEY)
        was_live, email_key = ended or (False, None)
        await self._invalidation.forget([code_key(email_key)] if email_key else [])
        if not was_live:
            raise ReferralCodeNotFound

    async def find_by_code(self, text: str) -> PublicReferralCode:
        """Return the live code that a person means who types `text`; raise ReferralCodeNotFound."""
        try:
            typed = normalise_code(text)
        except InvalidInput as error:
            raise ReferralCodeNotFound from error
        async with self._database.autocommit() as repositories:
            code = await repositories.referral_codes.find_public(
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
        email_key = lookup.key.removeprefix(CODE_KEY)

        async def load() -> Entry | None:
            code = await self._live_by_email.find(email_key)
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
    ) -> tuple[list[str], bool]:
        """Store the code; return what the cache has to forget, and whether one was replaced."""
        try:
            email_key, replaced = await repositories.referral_codes.add(
                code, CODE_KEY, confirmed_only=self._confirmed_only, replacing=replacing
            )
        except ReferralCodeTaken as error:
            if wish.code is not None:
                raise
            raise TransactionConflict from error  # then another one is drawn
        return [code_key(email_key)], replaced
