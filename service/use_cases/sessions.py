"""What can be done with sessions: signing in, staying signed in, signing out."""

import logging
from datetime import timedelta
from typing import Final
from uuid import UUID

from uuid6 import uuid7

from service.cache import Cache, Entry
from service.database import Database, TransactionConflict, retried
from service.domain.clock import Clock
from service.domain.errors import (
    AccountDisabled,
    EmailMalformed,
    InvalidCredentials,
    InvalidToken,
    SessionNotFound,
)
from service.domain.pages import Cursor, Page
from service.domain.passwords import check_password
from service.domain.sessions import Caller, Session, Tokens
from service.domain.users import Role, parse_email
from service.passwords import PasswordHasher
from service.tokens import AccessTokens, RefreshTokens
from service.use_cases.forgetting import Forgetting, session_key

LONGEST_USER_AGENT: Final = 200
log = logging.getLogger(__name__)


class Sessions:
    """Sessions and their tokens. The session's row decides; the cache only repeats it."""

    def __init__(
        self,
        database: Database,
        cache: Cache,
        forgetting: Forgetting,
        hasher: PasswordHasher,
        access_tokens: AccessTokens,
        refresh_tokens: RefreshTokens,
        clock: Clock,
        *,
        lifetime: timedelta,
        password_min_length: int,
    ) -> None:
        self._database = database
        self._cache = cache
        self._forgetting = forgetting
        self._hasher = hasher
        self._access_tokens = access_tokens
        self._refresh_tokens = refresh_tokens
        self._clock = clock
        self._lifetime = lifetime
        self._password_min_length = password_min_length

    @retried
    async def log_in(self, email: str, password: str, user_agent: str | None) -> Tokens:
        """Begin a session; raise InvalidCredentials, or AccountDisabled if they are right.

        An unknown e-mail costs a hash too, and is refused with the same words.
        """
        try:
            email_key = parse_email(email).key
        except EmailMalformed:
            email_key = ""  # nobody's
        async with self._database.reading() as repositories:
            credentials = await repositories.users.find_credentials_by_email(email_key)
        password_hash = credentials.password_hash if credentials else None
        verified, new_hash = await self._hasher.verify(password, password_hash)
        if not verified or credentials is None or password_hash is None:
            raise InvalidCredentials
        if credentials.disabled:
            raise AccountDisabled
        now = self._clock()
        session = Session(
            session_id=uuid7(),
            user_id=credentials.user_id,
            counter=0,
            user_agent=user_agent and user_agent[:LONGEST_USER_AGENT],
            created_at=now,
            refreshed_at=now,
            expires_at=now + self._lifetime,
        )
        async with self._database.transaction() as repositories:
            if new_hash is not None:
                if not await repositories.users.replace_password_hash(
                    credentials.user_id, password_hash, new_hash
                ):
                    # Hashed anew by another sign-in, or changed: to be verified again.
                    raise TransactionConflict
                password_hash = new_hash
            if not await repositories.sessions.add(session, password_hash):
                raise InvalidCredentials  # changed or disabled since it was read
        return self._tokens(session.session_id, 0, credentials.user_id, credentials.role)

    @retried
    async def refresh(self, refresh_token: str) -> Tokens:
        """Return new tokens for the session's newest refresh token.

        Raises InvalidToken. An older token was stolen, or what it was rotated to is: it ends the
        session (RFC 9700, 4.14.2).
        """
        token = self._refresh_tokens.verify(refresh_token)
        now = self._clock()
        ended = False
        async with self._database.transaction() as repositories:
            rotated = await repositories.sessions.rotate(token.session_id, token.counter, now)
            if rotated is None:
                ended = await repositories.sessions.end(token.session_id, now)
                if ended:
                    await self._forgetting.plan(repositories, [session_key(token.session_id)], now)
        if rotated is None:
            await self._forgetting.forget([session_key(token.session_id)])
            if ended:
                log.warning("refresh token used again, session ended: %s", token.session_id)
            raise InvalidToken("The refresh token is expired, revoked or was used before.")
        return self._tokens(token.session_id, token.counter + 1, *rotated)

    async def authenticate(self, access_token: str) -> Caller:
        """Return who sends the token; raise InvalidToken if it or its session has ended."""
        now = self._clock()
        token = self._access_tokens.verify(access_token, now)

        async def load() -> Entry | None:
            async with self._database.reading() as repositories:
                expires_at = await repositories.sessions.expiry_if_open(token.session_id, now)
            if expires_at is None:
                return None
            return Entry("open", min(expires_at, now + self._access_tokens.lifetime))

        if await self._cache.read_through(session_key(token.session_id), load) is None:
            raise InvalidToken
        return Caller(user_id=token.user_id, session_id=token.session_id, scope=token.scope)

    async def page(self, user_id: UUID, limit: int, behind: Cursor | None) -> Page[Session]:
        """Return a page of the user's open sessions, newest first."""
        async with self._database.reading() as repositories:
            sessions = await repositories.sessions.newest_open(
                user_id, self._clock(), limit + 1, behind
            )
        return Page.of(
            sessions, limit, lambda session: Cursor(session.created_at, session.session_id)
        )

    @retried
    async def end(self, session_id: UUID, user_id: UUID) -> None:
        """End one of the user's sessions; raise SessionNotFound."""
        now = self._clock()
        keys = [session_key(session_id)]
        async with self._database.transaction() as repositories:
            if not await repositories.sessions.end_own(session_id, user_id, now):
                raise SessionNotFound
            await self._forgetting.plan(repositories, keys, now)
        await self._forgetting.forget(keys)

    @retried
    async def end_others(self, caller: Caller) -> None:
        """End all of the caller's sessions but the present one."""
        now = self._clock()
        async with self._database.transaction() as repositories:
            ended = await repositories.sessions.end_all_but(caller.user_id, caller.session_id, now)
            keys = [session_key(session_id) for session_id in ended]
            await self._forgetting.plan(repositories, keys, now)
        await self._forgetting.forget(keys)

    @retried
    async def change_password(self, caller: Caller, current: str, new: str) -> None:
        """Store a new password and end the other sessions.

        Raises InvalidCredentials if `current` is wrong, PasswordUnacceptable if `new` may not be.
        """
        async with self._database.reading() as repositories:
            user = await repositories.users.find(caller.user_id)
            credentials = await repositories.users.find_credentials(caller.user_id)
        wrong = InvalidCredentials("The current password is wrong.", pointer="#/current_password")
        if user is None or user.email is None or credentials is None:
            raise wrong  # erased since the session was checked
        email = parse_email(user.email)
        check_password(new, email, self._password_min_length, "#/new_password")
        verified, _ = await self._hasher.verify(current, credentials.password_hash)
        if not verified:
            raise wrong
        new_hash = await self._hasher.hash(new)
        now = self._clock()
        async with self._database.transaction() as repositories:
            if not await repositories.users.replace_password_hash(
                caller.user_id, credentials.password_hash, new_hash
            ):
                # Changed, or hashed anew by a sign-in, since it was read: to be verified again.
                raise TransactionConflict
            ended = await repositories.sessions.end_all_but(caller.user_id, caller.session_id, now)
            keys = [session_key(session_id) for session_id in ended]
            await self._forgetting.plan(repositories, keys, now)
        await self._forgetting.forget(keys)

    def _tokens(self, session_id: UUID, counter: int, user_id: UUID, role: Role) -> Tokens:
        return Tokens(
            access_token=self._access_tokens.issue(user_id, role, session_id, self._clock()),
            expires_in=int(self._access_tokens.lifetime.total_seconds()),
            refresh_token=self._refresh_tokens.issue(session_id, counter),
            user_id=user_id,
        )
