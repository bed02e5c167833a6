"""Signing in with another issuer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from uuid6 import uuid7

from service.domain.account_changes import AccountChange, ChangeKind
from service.domain.emails import Email
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
from service.domain.users import User
from service.postgresql.database import Repositories, TryAgain, retried
from service.providers.identity import Provider
from service.use_cases.account_changes import offer_undo
from service.use_cases.claims import Claims
from service.use_cases.erasure import reclaim
from service.use_cases.locks import hold_user_of
from service.use_cases.referring import find_code
from service.use_cases.sessions import Sessions, end_sessions
from service.use_cases.shared import Shared
from service.use_cases.users import Users


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Where to send the browser, and the secret that identifies it when it comes back."""

    url: str
    browser: str


class Identities:
    """Sign-ins with other issuers. An identity is issuer and subject, never the email address."""

    def __init__(
        self,
        shared: Shared,
        users: Users,
        claims: Claims,
        sessions: Sessions,
        providers: Mapping[str, Provider],
    ) -> None:
        self._shared = shared
        self._database = shared.database
        self._users = users
        self._claims = claims
        self._sessions = sessions
        self.providers = providers
        self._name_of: dict[str, str] = {}
        for name, provider in providers.items():
            self._name_of.setdefault(provider.issuer, name)
        self._events = shared.events
        self._clock = shared.clock

    @retried
    async def start(
        self,
        name: str,
        referral_code: str | None,
        browser: str,
        authorization_request: str | None = None,
    ) -> Started:
        """Begin a sign-in.

        `browser` is the secret that the browser has, and keeps, from an earlier sign-in, perhaps in
        another tab; anything else if it has none. `authorization_request` is the query to continue
        with afterwards, as `request_of` returns it.

        Raises ProviderNotFound, ProviderUnavailable, or ReferralCodeUnusable: better now than after
        the user's visit to the issuer.
        """
        provider = self._find(name)
        now = self._clock()
        if referral_code is not None:
            async with self._database.autocommit() as repositories:
                await find_code(self._shared, repositories, referral_code, now)
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
        """Return what the sign-in continues with, without ending it."""
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
        """Begin a session of the person whom the issuer signed in, with a new account if need be.

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
        identities = await self._database.read(lambda stored: stored.identities.of_user(user_id))
        return [replace(one, provider=self._name_of.get(one.issuer)) for one in identities]

    @retried
    async def unlink(self, caller: Caller, identity_id: UUID) -> None:
        """Unlink an identity from the caller's account, and end the other sessions.

        Raises IdentityNotFound, or LastWayIn if nothing else would sign in.
        """
        user_id = caller.user_id
        now = self._clock()
        async with self._database.transaction() as repositories:
            # The lock makes two that are unlinked at once count one after the other.
            if await repositories.users.lock(user_id) is None:
                raise InvalidToken  # erased since the session was checked
            identities = await repositories.identities.of_user(user_id)
            unlinked = next((one for one in identities if one.identity_id == identity_id), None)
            if unlinked is None:
                raise IdentityNotFound
            others = [
                one for one in identities if one is not unlinked and one.issuer in self._name_of
            ]
            if not others and await repositories.users.find_credentials(user_id) is None:
                raise LastWayIn
            await repositories.identities.unlink(identity_id)
            await end_sessions(
                self._shared,
                repositories,
                user_id,
                now,
                reason="identity-unlinked",
                kept_session_id=caller.session_id,
            )
            await self._events.record(
                repositories,
                SecurityEvent.IDENTITY_UNLINKED,
                user_id,
                now,
                reason=self._name_of.get(unlinked.issuer),
            )

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
                user = await self._user_of(repositories, identity, sign_in, now)
                tokens = None
                refusal = EmailNotConfirmed()
                if user is None:
                    pass  # a claim, which must be committed
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
                    tokens = await self._sessions.open_session(
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
            # Made, disabled or erased by another request at the same moment: look again.
            raise TryAgain from error
        if tokens is None:  # after the commit: the account or claim is there, its mail planned
            raise refusal
        return tokens

    async def _user_of(
        self, repositories: Repositories, identity: Identity, sign_in: SignIn, now: datetime
    ) -> User | None:
        """Return whose identity it is; None if a claim was stored.

        A new identity is linked to the account that has its email address, if the issuer has
        verified it: otherwise writing a victim's address into an account there would open the
        victim's account here. Without such an account it gets one of its own; or, where addresses
        have to be confirmed and the issuer has not verified this one, a claim, whether or not the
        address has an account.
        """
        user_id = await hold_user_of(repositories, identity)
        user = None if user_id is None else await repositories.users.find(user_id)
        if user is not None:
            return user
        if identity.email is None:
            raise EmailWithheld
        if self._shared.confirmation_required and not identity.email_verified:
            await self._claims.add_of_identity(
                repositories, identity.email, identity, sign_in.referral_code, now
            )
            return None
        user = await repositories.users.find_by_email(identity.email.key)
        if user is None:
            user = await self._users.add_account(
                repositories,
                identity.email,
                now,
                sign_in.referral_code,
                email_confirmed=identity.email_verified,
            )
            await repositories.identities.add(identity, user.user_id, now)
            return user
        if user.disabled:
            return user
        refused = await repositories.account_changes.is_refused(user.user_id, identity)
        if identity.email_verified and not refused:
            return await self._link(repositories, identity, identity.email, user, sign_in, now)
        if await repositories.identities.find_user_id(identity) is not None:
            raise IdentityTaken  # the account is this identity's, made since the first look
        raise IdentityNotLinked

    async def _link(
        self,
        repositories: Repositories,
        identity: Identity,
        email: Email,
        user: User,
        sign_in: SignIn,
        now: datetime,
    ) -> User:
        """Link the identity to the account, whose owner is notified and signed out elsewhere.

        An account that never confirmed the email address is taken from the stranger who may have
        made it: the issuer has verified that the address is somebody's, and nobody else has.
        """
        user_id = user.user_id
        if not user.email_confirmed:
            await reclaim(self._shared, repositories, user_id, now)
            await repositories.users.confirm_email(user_id, email.key, now)
        locked = await repositories.users.lock(user_id)
        if locked is None or locked.email.key != email.key or not locked.email_confirmed:
            raise TryAgain
        await repositories.identities.add(identity, user_id, now)
        await end_sessions(self._shared, repositories, user_id, now, reason="identity-linked")
        await self._events.record(
            repositories, SecurityEvent.IDENTITY_LINKED, user_id, now, reason=sign_in.provider
        )
        change = AccountChange(
            account_change_id=uuid7(),
            user_id=user_id,
            kind=ChangeKind.IDENTITY,
            email=locked.email,
            email_confirmed=True,
            issuer=identity.issuer,
            subject=identity.subject,
        )
        await offer_undo(repositories, self._shared.jobs, change, now)
        linked = await repositories.users.find(user_id)
        assert linked is not None
        return linked
