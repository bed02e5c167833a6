"""What can be done with sessions: signing in, staying signed in, signing out."""

from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.clock import Clock
from service.domain.errors import (
    AccountDisabled,
    EmailMalformed,
    HashingQueueFull,
    InvalidCredentials,
    InvalidToken,
    SessionNotFound,
)
from service.domain.mails import MailKind
from service.domain.pages import Cursor, Page
from service.domain.passwords import PasswordRules, check_password
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
from service.domain.users import Role, parse_email
from service.postgresql.batch_loader import BatchLoader
from service.postgresql.database import Database, Repositories, TransactionConflict, retried
from service.redis.cache import Cache, Entry
from service.security.password_hashing import PasswordHasher
from service.security.tokens import LEEWAY, AccessToken, AccessTokens, RefreshTokens
from service.use_cases.cache_invalidation import CacheInvalidation, session_key
from service.use_cases.jobs import Jobs
from service.use_cases.mails import mail_to_user
from service.use_cases.security_events import SecurityEvents

GRACE: Final = timedelta(seconds=10)


class ScopeExceeded(ValueError):
    """More is wanted of an access token than the user has granted."""


class Sessions:
    """Sessions and their tokens. The session's row decides; the cache only repeats it."""

    def __init__(
        self,
        database: Database,
        cache: Cache,
        invalidation: CacheInvalidation,
        jobs: Jobs,
        hasher: PasswordHasher,
        access_tokens: AccessTokens,
        refresh_tokens: RefreshTokens,
        events: SecurityEvents,
        clock: Clock,
        *,
        lifetime: timedelta,
        password_rules: PasswordRules,
        confirmation_required: bool,
    ) -> None:
        self._database = database
        self._cache = cache
        self._invalidation = invalidation
        self._jobs = jobs
        self._hasher = hasher
        self._access_tokens = access_tokens
        self._refresh_tokens = refresh_tokens
        self._events = events
        self._clock = clock
        self._lifetime = lifetime
        self._password_rules = password_rules
        self._confirmation_required = confirmation_required
        self._expiries_if_open = BatchLoader[UUID, datetime](
            lambda session_ids: database.read(
                lambda stored: stored.sessions.expiries_if_open(session_ids, clock())
            )
        )

    @retried
    async def log_in(self, email: str, password: str, user_agent: str | None) -> Tokens:
        """Begin a session; raise InvalidCredentials, or AccountDisabled if they are right."""
        credentials = await self.check_password(email, password)
        try:
            async with self._database.transaction() as repositories:
                tokens = await self.open(
                    repositories,
                    credentials.user_id,
                    credentials.role,
                    origin="password",
                    user_agent=user_agent,
                    password_hash=credentials.password_hash,
                )
                await self._events.record(
                    repositories,
                    SecurityEvent.SIGN_IN_SUCCEEDED,
                    credentials.user_id,
                    self._clock(),
                    reason="password",
                )
        except InvalidCredentials:
            await self._events.record_failed_sign_in(parse_email(email).key, "changed-meanwhile")
            raise
        return tokens

    @retried
    async def check_password(self, email: str, password: str) -> Credentials:
        """Return whose they are; raise InvalidCredentials, or AccountDisabled if they are right.

        An unknown e-mail costs a hash too, and is refused with the same words. A hash that was
        made at another cost is made anew.
        """
        try:
            email_key = parse_email(email).key
        except EmailMalformed:
            email_key = ""  # nobody's
        async with self._database.autocommit() as repositories:
            credentials = await repositories.users.find_credentials_by_email(email_key)
        password_hash = credentials.password_hash if credentials else None
        verified, outdated = await self._hasher.verify(password, password_hash)
        if not verified or credentials is None or self._awaits_confirmation(credentials):
            # The one like the other: where e-mails have to be confirmed, nobody learns here
            # whether an e-mail had an account before it was registered with this password.
            reason = (
                "unknown-email"
                if credentials is None
                else "email-not-confirmed"
                if verified
                else "wrong-password"
            )
            await self._events.record_failed_sign_in(email_key, reason)
            raise InvalidCredentials
        if credentials.disabled:
            await self._events.record_failed_sign_in(email_key, "account-disabled")
            raise AccountDisabled
        # Not before: its time would tell that the password is right.
        return await self._hash_anew(credentials, password) if outdated else credentials

    async def _hash_anew(self, credentials: Credentials, password: str) -> Credentials:
        """Store a hash at the present cost, unless there are too many others to compute."""
        try:
            new_hash = await self._hasher.hash(password)
        except HashingQueueFull:
            return credentials
        async with self._database.transaction() as repositories:
            if not await repositories.users.replace_password_hash(
                credentials.user_id, credentials.password_hash, new_hash
            ):
                # Hashed anew by another sign-in, or changed: to be verified again.
                raise TransactionConflict
        return replace(credentials, password_hash=new_hash)

    def _awaits_confirmation(self, credentials: Credentials) -> bool:
        """Whether nobody may sign in yet; where all have to confirm, accounts of before have to."""
        return credentials.awaits_confirmation or (
            self._confirmation_required and not credentials.email_confirmed
        )

    async def open(
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

        Of more than MOST_OPEN_SESSIONS the oldest end. Raises InvalidCredentials if the user may
        not sign in, or has another password than the one that was checked.
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
            old_keys = [session_key(session_id) for session_id in ended]
            await self._invalidation.plan(repositories, old_keys, now)
            repositories.after_commit(partial(self._invalidation.forget, old_keys))
        return self._tokens(session, role)

    async def open_of_client(self, client_id: str, scopes: frozenset[Scope]) -> Tokens:
        """Begin the session of a client that speaks for itself, as long as its access token.

        Raises InvalidCredentials if the client may not, or no longer.
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

        An old token was stolen, or what it was rotated to is: it ends the session (RFC 9700,
        4.14.2). But an OAuth client may send the token before the newest for GRACE, and gets the
        newest again: it may not have got it, or have asked twice at once.
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
            keys = await self._end(
                repositories,
                token.session_id,
                now,
                reason="refresh-token-reused",
                alarm=SecurityEvent.REFRESH_TOKEN_REUSED,
            )
        await self._invalidation.forget(keys)
        raise refused

    async def lend_to_page(self, tokens: Tokens) -> tuple[str, timedelta]:
        """Return a token by which the sign-in page knows who has just signed in, and its life.

        It allows no call of the API, and the session, whose own tokens nobody gets, ends with it.
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
        """Return what the token says; raise InvalidToken if it or its session has ended."""
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

    async def page(self, user_id: UUID, limit: int, behind: Cursor | None) -> Page[Session]:
        """Return a page of the user's open sessions, newest first."""
        now = self._clock()
        sessions = await self._database.from_standby(
            lambda repositories: repositories.sessions.newest_open(user_id, now, limit + 1, behind)
        )
        return Page.of(
            sessions, limit, lambda session: Cursor(session.created_at, session.session_id)
        )

    @retried
    async def end(self, caller: Caller, session_id: UUID) -> None:
        """End one of the caller's sessions, the present or another one; raise SessionNotFound."""
        now = self._clock()
        keys = [session_key(session_id)]
        async with self._database.transaction() as repositories:
            # First, because its row locks the user, whom others lock before the sessions.
            await self._events.record_ended_sessions(
                repositories,
                caller.user_id,
                [session_id],
                now,
                reason="signed-out" if session_id == caller.session_id else "from-another",
            )
            if not await repositories.sessions.end_own(session_id, caller.user_id, now):
                raise SessionNotFound
            await self._invalidation.plan(repositories, keys, now)
        await self._invalidation.forget(keys)

    @retried
    async def revoke(self, session_id: UUID, *, reason: str) -> None:
        """End any session: its refresh and its access tokens are of no more use."""
        async with self._database.transaction() as repositories:
            keys = await self._end(repositories, session_id, self._clock(), reason=reason)
        await self._invalidation.forget(keys)

    async def _end(
        self,
        repositories: Repositories,
        session_id: UUID,
        now: datetime,
        *,
        reason: str,
        alarm: SecurityEvent | None = None,
    ) -> list[str]:
        """End any session in the caller's transaction; return the cache keys that became old.

        `alarm` is recorded besides, but only by the first of those who end the session.
        """
        session = await repositories.sessions.end(session_id, now)
        keys = [session_key(session_id)]
        if session is None:
            return keys  # ended before, but maybe not yet in the cache
        if session.user_id is None:  # a client's own: there is no owner to tell
            self._events.log_when_committed(
                repositories, SecurityEvent.SESSION_ENDED, None, reason=reason, count=1
            )
        else:
            if alarm is not None:
                await self._events.record(repositories, alarm, session.user_id, now)
            await self._events.record_ended_sessions(
                repositories, session.user_id, [session_id], now, reason=reason
            )
        await self._invalidation.plan(repositories, keys, now)
        return keys

    @retried
    async def end_others(self, caller: Caller) -> None:
        """End all of the caller's sessions but the present one."""
        now = self._clock()
        async with self._database.transaction() as repositories:
            ended = await repositories.sessions.end_all_but(caller.user_id, caller.session_id, now)
            await self._events.record_ended_sessions(
                repositories, caller.user_id, ended, now, reason="others"
            )
            keys = [session_key(session_id) for session_id in ended]
            await self._invalidation.plan(repositories, keys, now)
        await self._invalidation.forget(keys)

    @retried
    async def change_password(self, caller: Caller, current: str, new: str) -> None:
        """Store a new password and end the other sessions.

        Raises InvalidCredentials if `current` is wrong, PasswordUnacceptable if `new` may not be.
        """
        async with self._database.autocommit() as repositories:
            user = await repositories.users.find(caller.user_id)
            credentials = await repositories.users.find_credentials(caller.user_id)
        wrong = InvalidCredentials("The current password is wrong.", field="current_password")
        if user is None or user.email is None or credentials is None:
            raise wrong  # erased since the session was checked
        email = parse_email(user.email)
        check_password(new, email, self._password_rules, "new_password")
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
            await repositories.authorization_codes.delete_of_user(caller.user_id)
            # Whoever else knew the old password may have had the e-mail changed to another one.
            await repositories.mail_tokens.delete_of_user(caller.user_id)
            await repositories.account_changes.note_new_password(caller.user_id)
            await self._events.record(
                repositories, SecurityEvent.PASSWORD_CHANGED, caller.user_id, now
            )
            await self._events.record_ended_sessions(
                repositories, caller.user_id, ended, now, reason="password-changed"
            )
            keys = [session_key(session_id) for session_id in ended]
            await self._invalidation.plan(repositories, keys, now)
            await self._jobs.plan(
                repositories, mail_to_user(MailKind.PASSWORD_CHANGED, caller.user_id)
            )
        await self._invalidation.forget(keys)

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
