"""Signing in with another issuer: beginning there, and coming back as somebody."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from service.database import Database, Repositories, TransactionConflict, retried
from service.domain.clock import Clock
from service.domain.errors import (
    AccountDisabled,
    EmailNotConfirmed,
    EmailTaken,
    EmailWithheld,
    IdentityNotLinked,
    InvalidCredentials,
    ProviderNotFound,
    SignInUnusable,
)
from service.domain.identities import (
    SIGN_IN_LIVES,
    AuthorizationAnswer,
    Identity,
    IdentityTaken,
    SignIn,
)
from service.domain.oauth import hash_secret, new_secret
from service.domain.sessions import Tokens
from service.domain.users import User
from service.providers import Provider
from service.use_cases.forgetting import Forgetting
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
        forgetting: Forgetting,
        users: Users,
        sessions: Sessions,
        providers: Mapping[str, Provider],
        events: SecurityEvents,
        clock: Clock,
    ) -> None:
        self._database = database
        self._forgetting = forgetting
        self._users = users
        self._sessions = sessions
        self.providers = providers
        self._events = events
        self._clock = clock

    @retried
    async def start(
        self, name: str, referral_code: str | None, authorization_request: str | None = None
    ) -> Started:
        """Begin a sign-in.

        `authorization_request` is the query of what it is to go on with, as `request_of` returns
        it afterwards.

        Raises ProviderNotFound, ProviderUnavailable, or ReferralCodeUnusable: better now than
        when the user has been to the issuer.
        """
        provider = self._find(name)
        now = self._clock()
        if referral_code is not None:
            async with self._database.reading() as repositories:
                await self._users.check_code(repositories, referral_code, now)
        state, browser = new_secret(), new_secret()
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
        async with self._database.reading() as repositories:
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
        sign_in = await self._take(hash_secret(state), hash_secret(browser), name)
        identity = await provider.identify(answer, sign_in)
        return await self._sign_in(identity, sign_in, user_agent)

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
        old_keys: list[str] = []
        try:
            async with self._database.transaction() as repositories:
                user = await self._find_user(repositories, identity, now)
                if user is None:
                    user, old_keys = await self._make_user(repositories, identity, sign_in, now)
                if user.disabled:
                    raise AccountDisabled
                tokens = (
                    None
                    if user.awaits_confirmation
                    else await self._sessions.open(
                        repositories,
                        user.user_id,
                        user.role,
                        origin=sign_in.provider,
                        user_agent=user_agent,
                    )
                )
        except (EmailTaken, IdentityTaken, InvalidCredentials) as error:
            # Made, disabled or erased by another request of the same moment: to be looked at anew.
            raise TransactionConflict from error
        await self._forgetting.forget(old_keys)
        if tokens is None:  # told behind the commit: the account is there, and its mail is written
            raise EmailNotConfirmed
        return tokens

    async def _find_user(
        self, repositories: Repositories, identity: Identity, now: datetime
    ) -> User | None:
        """Return whose identity it is, having linked it if both sides have confirmed the e-mail.

        With less, whoever writes somebody else's e-mail into an account there or here would get
        into the other one.
        """
        user_id = await repositories.identities.find_user_id(identity)
        if user_id is None and identity.email is not None and identity.email_verified:
            user_id = await repositories.identities.link(identity, identity.email.key, now)
        return None if user_id is None else await repositories.users.find(user_id)

    async def _make_user(
        self, repositories: Repositories, identity: Identity, sign_in: SignIn, now: datetime
    ) -> tuple[User, list[str]]:
        """Make an account without a password; return it, and the cache keys that became old."""
        if identity.email is None:
            raise EmailWithheld
        if await repositories.users.find_by_email(identity.email.key) is not None:
            if await repositories.identities.find_user_id(identity) is not None:
                raise IdentityTaken  # the account is this identity's, made since it was looked for
            raise IdentityNotLinked
        user, old_keys = await self._users.add(
            repositories,
            identity.email,
            now,
            sign_in.referral_code,
            email_confirmed=identity.email_verified,
        )
        await repositories.identities.add(identity, user.user_id, now)
        return user, old_keys
