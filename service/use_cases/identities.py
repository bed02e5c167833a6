"""Signing in with another issuer: beginning there, and coming back as somebody."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from uuid6 import uuid7

from service.domain.account_changes import AccountChange, ChangeKind
from service.domain.clock import Clock
from service.domain.errors import (
    AccountDisabled,
    EmailNotConfirmed,
    EmailTaken,
    EmailWithheld,
    IdentityNotFound,
    IdentityNotLinked,
    InvalidCredentials,
    InvalidToken,
    LastWayIn,
    ProviderNotFound,
    SignInRefused,
    SignInUnusable,
)
from service.domain.identities import (
    SIGN_IN_LIVES,
    AuthorizationAnswer,
    Identity,
    IdentityTaken,
    LinkedIdentity,
    SignIn,
)
from service.domain.oauth import hash_secret, is_secret, new_secret
from service.domain.security_events import SecurityEvent
from service.domain.sessions import Caller, Tokens
from service.domain.users import Email, User
from service.postgresql.database import Database, Repositories, TryAgain, retried
from service.providers.identity import Provider
from service.use_cases.account_changes import offer_undo
from service.use_cases.cache_invalidation import CacheInvalidation, session_key
from service.use_cases.claims import Claims
from service.use_cases.jobs import Jobs
from service.use_cases.security_events import SecurityEvents
from service.use_cases.sessions import Sessions
from service.use_cases.users import Users


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Where to send the browser, and the secret by which it is known when it comes back."""

    url: str
    browser: str


class Identities:
    """Sign-ins with other issuers. An identity is issuer and subject, never the e-mail."""

    def __init__(
        self,
        database: Database,
        invalidation: CacheInvalidation,
        jobs: Jobs,
        users: Users,
        claims: Claims,
        sessions: Sessions,
        providers: Mapping[str, Provider],
        events: SecurityEvents,
        clock: Clock,
        *,
        confirmation_required: bool,
    ) -> None:
        self._database = database
        self._invalidation = invalidation
        self._users = users
        self._claims = claims
        self._sessions = sessions
        self.providers = providers
        self._name_of: dict[str, str] = {}
        for name, provider in providers.items():
            self._name_of.setdefault(provider.issuer, name)
        self._jobs = jobs
        self._events = events
        self._clock = clock
        self._confirmation_required = confirmation_required

    @retried
    async def start(
        self,
        name: str,
        referral_code: str | None,
        browser: str,
        authorization_request: str | None = None,
    ) -> Started:
        """Begin a sign-in.

        `browser` is the secret that the browser has from a sign-in begun before, in another tab
        perhaps, whose end must find it unchanged; anything else for a browser without one.
        `authorization_request` is the query of what it is to go on with, as `request_of` returns
        it afterwards.

        Raises ProviderNotFound, ProviderUnavailable, or ReferralCodeUnusable: better now than
        when the user has been to the issuer.
        """
        provider = self._find(name)
        now = self._clock()
        if referral_code is not None:
            async with self._database.autocommit() as repositories:
                await self._users.find_code(repositories, referral_code, now)
        state = new_secret()
        if not is_secret(browser):
            browser = new_secret()
        sign_in = SignIn(
            state_hash=hash_secret(state),
            browser_hash=hash_secret(browser),
            provider=name,
            nonce=new_secret(),
            code_verifier=new_secret(),
            referral_code=referral_code,
            created_at=now,
            expires_at=now + SIGN_IN_LIVES,
            authorization_request=authorization_request,
        )
        url = await provider.authorization_url(state, sign_in.nonce, sign_in.code_verifier)
        async with self._database.transaction() as repositories:
            await repositories.sign_ins.add(sign_in)
        return Started(url=url, browser=browser)

    async def request_of(self, name: str, state: str, browser: str) -> str | None:
        """Return what the sign-in that is about to end is to go on with; it can still end then."""
        async with self._database.autocommit() as repositories:
            return await repositories.sign_ins.find_request(
                hash_secret(state), hash_secret(browser), name, self._clock()
            )

    async def finish(
        self,
        name: str,
        state: str,
        browser: str,
        answer: AuthorizationAnswer,
        user_agent: str | None,
    ) -> Tokens:
        """Begin the session of whom the issuer has signed in, who gets an account if there is none.

        Raises ProviderNotFound; SignInUnusable for a state that is not this browser's; what
        `identify` of the provider raises; and EmailWithheld, IdentityNotLinked,
        ReferralCodeUnusable, EmailNotConfirmed or AccountDisabled.
        """
        provider = self._find(name)
        try:
            sign_in = await self._take(hash_secret(state), hash_secret(browser), name)
            identity = await provider.identify(answer, sign_in)
            return await self._sign_in(identity, sign_in, user_agent)
        except (SignInUnusable, SignInRefused, EmailWithheld) as error:
            self._events.log(SecurityEvent.SIGN_IN_FAILED, None, reason=error.code)
            raise

    async def list_of(self, user_id: UUID) -> list[LinkedIdentity]:
        """Return the identities that sign in to the account, newest first."""
        async with self._database.autocommit() as repositories:
            identities = await repositories.identities.of_user(user_id)
        return [replace(one, provider=self._name_of.get(one.issuer)) for one in identities]

    @retried
    async def unlink(self, caller: Caller, identity_id: UUID) -> None:
        """Cut an identity off the caller's account, and end the other sessions.

        Raises IdentityNotFound, or LastWayIn if nothing else would sign in.
        """
        user_id = caller.user_id
        now = self._clock()
        async with self._database.transaction() as repositories:
            # The lock lets two that are cut off at once be counted one after the other.
            if await repositories.users.lock(user_id) is None:
                raise InvalidToken  # erased since the session was checked
            identities = await repositories.identities.of_user(user_id)
            cut = next((one for one in identities if one.identity_id == identity_id), None)
            if cut is None:
                raise IdentityNotFound
            others = [one for one in identities if one is not cut and one.issuer in self._name_of]
            if not others and await repositories.users.find_credentials(user_id) is None:
                raise LastWayIn
            await repositories.identities.unlink(identity_id)
            old_keys = await self._end_sessions(
                repositories, user_id, caller.session_id, now, "identity-unlinked"
            )
            await self._events.record(
                repositories,
                SecurityEvent.IDENTITY_UNLINKED,
                user_id,
                now,
                reason=self._name_of.get(cut.issuer),
            )
        await self._invalidation.forget(old_keys)

    def _find(self, name: str) -> Provider:
        provider = self.providers.get(name)
        if provider is None:
            raise ProviderNotFound
        return provider

    @retried
    async def _take(self, state_hash: bytes, browser_hash: bytes, name: str) -> SignIn:
        async with self._database.transaction() as repositories:
            sign_in = await repositories.sign_ins.take(
                state_hash, browser_hash, name, self._clock()
            )
        if sign_in is None:
            raise SignInUnusable
        return sign_in

    @retried
    async def _sign_in(self, identity: Identity, sign_in: SignIn, user_agent: str | None) -> Tokens:
        now = self._clock()
        refusal: AccountDisabled | EmailNotConfirmed
        try:
            async with self._database.transaction() as repositories:
                user, old_keys = await self._user_of(repositories, identity, sign_in, now)
                tokens = None
                refusal = EmailNotConfirmed()
                if user is None:
                    pass  # a claim, which is to be committed
                elif user.disabled or self._users.judge(user).awaits_confirmation:
                    if user.disabled:
                        refusal = AccountDisabled()
                    await self._events.record(
                        repositories,
                        SecurityEvent.SIGN_IN_FAILED,
                        user.user_id,
                        now,
                        reason=refusal.code,
                    )
                else:
                    tokens = await self._sessions.open(
                        repositories,
                        user.user_id,
                        user.role,
                        origin=sign_in.provider,
                        user_agent=user_agent,
                    )
                    await self._events.record(
                        repositories,
                        SecurityEvent.SIGN_IN_SUCCEEDED,
                        user.user_id,
                        now,
                        reason=sign_in.provider,
                    )
        except IdentityNotLinked as error:
            assert identity.email is not None
            await self._events.record_failed_sign_in(identity.email.key, error.code)
            raise
        except (EmailTaken, IdentityTaken, InvalidCredentials) as error:
            # Made, disabled or erased by another request of the same moment: to be looked at anew.
            raise TryAgain from error
        await self._invalidation.forget(old_keys)
        if tokens is None:  # after the commit: the account or claim is there, its mail planned
            raise refusal
        return tokens

    async def _user_of(
        self, repositories: Repositories, identity: Identity, sign_in: SignIn, now: datetime
    ) -> tuple[User | None, list[str]]:
        """Return whose identity it is, and the cache keys that became old.

        A new one is linked to the account that has its email address, if the issuer has verified
        it: with less, a stranger's address written into an account there would open the
        stranger's here. Otherwise it gets an account of its own; where addresses have to be
        confirmed and the issuer has not verified this one, a claim, whoever has the address.
        """
        user_id = await repositories.identities.find_user_id(identity)
        user = None if user_id is None else await repositories.users.find(user_id)
        if user is not None:
            return user, []
        if identity.email is None:
            raise EmailWithheld
        if self._confirmation_required and not identity.email_verified:
            await self._claims.add_of_identity(
                repositories, identity.email, identity, sign_in.referral_code, now
            )
            return None, []
        user = await repositories.users.find_by_email(identity.email.key)
        if user is None:
            return await self._make_user(repositories, identity, identity.email, sign_in, now)
        if user.disabled:
            return user, []
        refused = await repositories.account_changes.is_refused(user.user_id, identity)
        if identity.email_verified and not refused:
            return await self._link(repositories, identity, user, sign_in, now)
        if await repositories.identities.find_user_id(identity) is not None:
            raise IdentityTaken  # the account is this identity's, made since it was looked for
        raise IdentityNotLinked

    async def _link(
        self,
        repositories: Repositories,
        identity: Identity,
        user: User,
        sign_in: SignIn,
        now: datetime,
    ) -> tuple[User, list[str]]:
        """Link the identity to the account, whose owner is told and signed out elsewhere.

        An account that has never confirmed the email address is taken from whoever made it: the
        issuer has verified that the address is somebody's, and nobody else has.
        """
        user_id, email = user.user_id, identity.email
        old_keys: list[str] = []
        if not user.email_confirmed and email is not None:
            reclaimed = await self._users.reclaim(repositories, user_id, now)
            if reclaimed is None:
                raise TryAgain  # confirmed, or erased, at this moment
            _, old_keys = reclaimed
            await repositories.users.confirm_email(user_id, email.key, now)
        # The lock makes a change of the email address, or the account's end, wait or be seen.
        locked = await repositories.users.lock(user_id)
        if email is None or locked is None or locked[0].key != email.key or not locked[1]:
            raise TryAgain
        await repositories.identities.add(identity, user_id, now)
        old_keys += await self._end_sessions(repositories, user_id, None, now, "identity-linked")
        await self._events.record(
            repositories, SecurityEvent.IDENTITY_LINKED, user_id, now, reason=sign_in.provider
        )
        change = AccountChange(
            account_change_id=uuid7(),
            user_id=user_id,
            kind=ChangeKind.IDENTITY,
            email=locked[0],
            email_confirmed=True,
            issuer=identity.issuer,
            subject=identity.subject,
        )
        await offer_undo(repositories, self._jobs, change, now)
        linked = await repositories.users.find(user_id)
        assert linked is not None
        return linked, old_keys

    async def _make_user(
        self,
        repositories: Repositories,
        identity: Identity,
        email: Email,
        sign_in: SignIn,
        now: datetime,
    ) -> tuple[User, list[str]]:
        """Make an account without a password; return it, and the cache keys that became old."""
        user, old_keys = await self._users.add(
            repositories,
            email,
            now,
            sign_in.referral_code,
            email_confirmed=identity.email_verified,
        )
        await repositories.identities.add(identity, user.user_id, now)
        return user, old_keys

    async def _end_sessions(
        self,
        repositories: Repositories,
        user_id: UUID,
        kept_session_id: UUID | None,
        now: datetime,
        reason: str,
    ) -> list[str]:
        """End the user's other sessions, and what was to become some; return old cache keys."""
        await repositories.authorization_codes.delete_of_user(user_id)
        ended = await repositories.sessions.end_all_but(user_id, kept_session_id, now)
        await self._events.record_ended_sessions(repositories, user_id, ended, now, reason=reason)
        keys = [session_key(session_id) for session_id in ended]
        await self._invalidation.plan(repositories, keys, now)
        return keys
