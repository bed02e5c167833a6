"""What can be done with sessions: signing in, staying signed in, signing out."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.emails import parse_email
from service.domain.errors import InvalidCredentials, InvalidToken, SessionNotFound
from service.domain.pages import Cursor, Page
from service.domain.scopes import Scope, scopes_of
from service.domain.security_events import SecurityEvent
from service.domain.sessions import (
    FIRST_PARTY,
    LONGEST_USER_AGENT,
    MOST_OPEN_SESSIONS,
    SIGN_IN_PAGE,
    Caller,
    Credentials,
    Session,
    Tokens,
)
from service.domain.users import Role
from service.postgresql.batch_loader import BatchLoader
from service.postgresql.database import Repositories, retried
from service.redis.cache import Cache, Entry
from service.security.access_tokens import AccessToken, AccessTokens
from service.security.refresh_tokens import RefreshTokens
from service.security.signing_keys import LEEWAY
from service.use_cases.cache_invalidation import session_key
from service.use_cases.credentials import verify_credentials
from service.use_cases.shared import Shared

GRACE: Final = timedelta(seconds=10)


class ScopeExceeded(ValueError):
    """More is wanted of an access token than the user has granted."""


class Sessions:
    """Sessions and their tokens. The session's row decides; the cache only repeats it."""

    def __init__(
        self,
        shared: Shared,
        cache: Cache,
        access_tokens: AccessTokens,
        refresh_tokens: RefreshTokens,
        lifetime: timedelta,
    ) -> None:
        self._shared = shared
        self._database = database = shared.database
        self._cache = cache
        self._invalidation = shared.invalidation
        self._access_tokens = access_tokens
        self._refresh_tokens = refresh_tokens
        self._events = shared.events
        self._clock = clock = shared.clock
        self._lifetime = lifetime
        self._expiries_if_open = BatchLoader[UUID, datetime](
            lambda session_ids: database.read(
                lambda stored: stored.sessions.expiries_if_open(session_ids, clock())
            )
        )

    async def log_in(self, email: str, password: str, user_agent: str | None) -> Tokens:
        """Begin a session; raise InvalidCredentials, or AccountDisabled if they are right."""
        credentials = await verify_credentials(self._shared, email, password)
        try:
            return await self._begin(credentials, user_agent)
        except InvalidCredentials:
            await self._events.record_failed_sign_in(parse_email(email).key, "changed-meanwhile")
            raise

    @retried
    async def _begin(self, credentials: Credentials, user_agent: str | None) -> Tokens:
        user_id, event = credentials.user_id, SecurityEvent.SIGN_IN_SUCCEEDED
        async with self._database.transaction() as repositories:
            tokens = await self.open_session(
                repositories,
                user_id,
                credentials.role,
                origin="password",
                user_agent=user_agent,
                password_hash=credentials.password_hash,
            )
            await self._events.record(
                repositories, event, user_id, self._clock(), reason="password"
            )
        return tokens

    async def open_session(
        self,
        repositories: Repositories,
        user_id: UUID,
        role: Role,
        *,
        origin: str,
        client_id: str = FIRST_PARTY,
        scopes: frozenset[Scope] | None = None,
        user_agent: str | None = None,
        password_hash: str | None = None,
    ) -> Tokens:
        """Begin a user's session in the caller's transaction, and return its tokens.

        Beyond MOST_OPEN_SESSIONS the oldest end. Raises InvalidCredentials if the user may not sign
        in, or if the password has changed since `password_hash` was verified.
        """
        now = self._clock()
        session = Session(
            session_id=uuid7(),
            user_id=user_id,
            client_id=client_id,
            origin=origin,
            scopes=scopes,
            user_agent=user_agent and user_agent[:LONGEST_USER_AGENT],
            created_at=now,
            refreshed_at=now,
            expires_at=now + self._lifetime,
        )
        if not await repositories.sessions.add(session, password_hash):
            raise InvalidCredentials
        ended = await repositories.sessions.end_surplus(
            user_id, session.session_id, MOST_OPEN_SESSIONS, now
        )
        if ended:
            await self._events.record(
                repositories, SecurityEvent.SESSION_ENDED, user_id, now, reason="too-many"
            )
            await self._invalidation.invalidate(repositories, [*map(session_key, ended)], now)
        return self._tokens(session, role)

    async def open_of_client(self, client_id: str, scopes: frozenset[Scope]) -> Tokens:
        """Begin a client's own session, which lasts as long as its access token.

        Raises InvalidCredentials if the client may not have one, or no longer.
        """
        now = self._clock()
        session = Session(
            session_id=uuid7(),
            user_id=None,
            client_id=client_id,
            origin="client_credentials",
            scopes=scopes,
            created_at=now,
            refreshed_at=now,
            expires_at=now + self._access_tokens.lifetime + LEEWAY,
        )
        async with self._database.transaction() as repositories:
            if not await repositories.sessions.add_of_client(session):
                raise InvalidCredentials
        return self._access_token(session, scopes, client_id)

    @retried
    async def refresh(
        self,
        refresh_token: str,
        client_id: str = FIRST_PARTY,
        scopes: frozenset[Scope] | None = None,
    ) -> Tokens:
        """Return new tokens for the newest refresh token of one of the client's sessions.

        `scopes` are those wanted of the access token, None for all. Raises ScopeExceeded if they
        are more than were granted, and InvalidToken.

        An older token means that it, or its successor, was stolen: it ends the session (RFC 9700,
        4.14.2). But for GRACE an OAuth client may send the previous token and gets the newest one
        again: it may not have received it, or have asked twice at once.
        """
        token = self._refresh_tokens.verify(refresh_token)
        refused = InvalidToken("The refresh token is expired, revoked or was used before.")
        now = self._clock()
        async with self._database.transaction() as repositories:
            found = await repositories.sessions.rotate(
                token.session_id, token.counter, client_id, now
            )
            if found is not None:
                return self._tokens(*found, scopes)
            found = await repositories.sessions.find_open(token.session_id, now)
            if found is None or found[0].client_id != client_id:
                raise refused
            session = found[0]
            is_parent = session.counter == token.counter + 1
            in_time = client_id != FIRST_PARTY and now <= session.refreshed_at + GRACE
            if is_parent and in_time:
                return self._tokens(*found, scopes)
            await self._end(
                repositories,
                token.session_id,
                now,
                reason="refresh-token-reused",
                alarm=SecurityEvent.REFRESH_TOKEN_REUSED,
            )
        raise refused

    async def lend_to_page(self, tokens: Tokens) -> tuple[str, timedelta]:
        """Return a token that identifies the new session to the sign-in page, and its lifetime.

        It allows no call of the API. The session, whose own tokens are not handed out, expires with
        it.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            await repositories.sessions.shorten(
                tokens.session_id, now + self._access_tokens.lifetime + LEEWAY
            )
        token = self._access_tokens.issue(
            subject=str(tokens.user_id),
            client_id=SIGN_IN_PAGE,
            session_id=tokens.session_id,
            scopes=(),
            now=now,
        )
        return token, self._access_tokens.lifetime

    async def authenticate(self, access_token: str) -> AccessToken:
        """Return the token's claims; raise InvalidToken if it or its session has ended."""
        now = self._clock()
        token = self._access_tokens.verify(access_token, now)

        async def load() -> Entry | None:
            expires_at = await self._expiries_if_open.find(token.session_id)
            if expires_at is None:
                return None
            return Entry(b"open", min(expires_at, now + self._access_tokens.lifetime))

        if await self._cache.read_through(session_key(token.session_id), load) is None:
            raise InvalidToken
        return token

    async def find_by_refresh_token(self, refresh_token: str) -> tuple[Session, bool]:
        """Return the token's open session, and whether the token is its newest.

        Raises InvalidToken.
        """
        token = self._refresh_tokens.verify(refresh_token)
        async with self._database.autocommit() as repositories:
            found = await repositories.sessions.find_open(token.session_id, self._clock())
        if found is None:
            raise InvalidToken
        session = found[0]
        return session, session.counter == token.counter

    async def page(self, user_id: UUID, limit: int, after: Cursor | None) -> Page[Session]:
        """Return a page of the user's open sessions, newest first."""
        now = self._clock()
        sessions = await self._database.from_standby(
            lambda repositories: repositories.sessions.newest_open(user_id, now, limit + 1, after)
        )
        return Page.of(
            sessions, limit, lambda session: Cursor(session.created_at, session.session_id)
        )

    @retried
    async def end(self, caller: Caller, session_id: UUID) -> None:
        """End one of the caller's sessions, the current one or another; raise SessionNotFound."""
        now = self._clock()
        async with self._database.transaction() as repositories:
            # First, because it locks the user.
            await self._events.record_ended_sessions(
                repositories,
                caller.user_id,
                [session_id],
                now,
                reason="signed-out" if session_id == caller.session_id else "from-another",
            )
            if not await repositories.sessions.end_own(session_id, caller.user_id, now):
                raise SessionNotFound
            await self._invalidation.invalidate(repositories, [session_key(session_id)], now)

    @retried
    async def revoke(self, session_id: UUID, *, reason: str) -> None:
        """End any session; its refresh and access tokens stop working."""
        async with self._database.transaction() as repositories:
            await self._end(repositories, session_id, self._clock(), reason=reason)

    async def _end(
        self,
        repositories: Repositories,
        session_id: UUID,
        now: datetime,
        *,
        reason: str,
        alarm: SecurityEvent | None = None,
    ) -> None:
        """End any session in the caller's transaction.

        `alarm` is recorded too, but only by the first of those who end the session.
        """
        session = await repositories.sessions.end(session_id, now)
        # Even if it had ended before: the cache may not know yet.
        await self._invalidation.invalidate(repositories, [session_key(session_id)], now)
        if session is None:
            return
        if session.user_id is None:  # a client's own: there is no account to record it for
            self._events.log_when_committed(
                repositories, SecurityEvent.SESSION_ENDED, None, reason=reason, count=1
            )
            return
        if alarm is not None:
            await self._events.record(repositories, alarm, session.user_id, now)
        await self._events.record_ended_sessions(
            repositories, session.user_id, [session_id], now, reason=reason
        )

    @retried
    async def end_others(self, caller: Caller) -> None:
        """End all of the caller's sessions except the current one."""
        now = self._clock()
        async with self._database.transaction() as repositories:
            ended = await repositories.sessions.end_all_but(caller.user_id, caller.session_id, now)
            await self._events.record_ended_sessions(
                repositories, caller.user_id, ended, now, reason="others"
            )
            await self._invalidation.invalidate(repositories, [*map(session_key, ended)], now)

    def _tokens(
        self, session: Session, role: Role, wanted: frozenset[Scope] | None = None
    ) -> Tokens:
        granted = scopes_of(role)
        if session.scopes is not None:
            granted &= session.scopes
        if not granted or (wanted is not None and not wanted <= granted):
            raise ScopeExceeded("The user may not do this, or has not granted it.")
        tokens = self._access_token(session, wanted or granted, str(session.user_id))
        refresh_token = self._refresh_tokens.issue(session.session_id, session.counter)
        return replace(tokens, refresh_token=refresh_token)

    def _access_token(self, session: Session, scopes: frozenset[Scope], subject: str) -> Tokens:
        access_token = self._access_tokens.issue(
            subject=subject,
            client_id=session.client_id,
            session_id=session.session_id,
            scopes=scopes,
            now=self._clock(),
        )
        return Tokens(
            access_token=access_token,
            expires_in=int(self._access_tokens.lifetime.total_seconds()),
            refresh_token=None,
            scopes=scopes,
            session_id=session.session_id,
            user_id=session.user_id,
        )


async def end_sessions(
    shared: Shared,
    repositories: Repositories,
    user_id: UUID,
    now: datetime,
    *,
    reason: str,
    kept_session_id: UUID | None = None,
) -> None:
    """End the user's sessions, and the authorization codes that would begin others.

    In the caller's transaction. `reason` is what the log names as the cause.
    """
    ended = await repositories.sessions.end_all_but(user_id, kept_session_id, now)
    await repositories.authorization_codes.delete_of_user(user_id)
    await shared.invalidation.invalidate(repositories, [*map(session_key, ended)], now)
    await shared.events.record_ended_sessions(repositories, user_id, ended, now, reason=reason)
