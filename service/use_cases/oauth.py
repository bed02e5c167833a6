"""The authorization server: what users grant to clients, and the tokens that clients get.

It is ours, on plain SQL: of the two Python libraries tried, one redeemed a code twenty times in
parallel and accepted a request without PKCE, the other refreshed a token six times. In the tests,
certified clients verify it.

It refuses with OAuthError, as RFC 6749 defines.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from service.domain.emails import parse_email
from service.domain.errors import InvalidCredentials, InvalidToken
from service.domain.oauth import (
    CODE_LIVES,
    AuthorizationCode,
    Client,
    Grant,
    OAuthError,
    hash_secret,
    is_challenge,
    new_secret,
)
from service.domain.scopes import Scope, parse_scopes
from service.domain.security_events import SecurityEvent
from service.domain.sessions import SIGN_IN_PAGE, Credentials, Session, Tokens
from service.postgresql.batch_loader import BatchLoader
from service.postgresql.database import Repositories, retried
from service.security.access_tokens import AccessToken
from service.use_cases.cache_invalidation import session_key
from service.use_cases.credentials import verify_credentials
from service.use_cases.sessions import ScopeExceeded, Sessions
from service.use_cases.shared import Shared

_NO_SESSION: Final = UUID(int=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRequest:
    """What a client asks a user for, as checked by `OAuth.read_request`."""

    client: Client
    redirect_uri: str
    scopes: frozenset[Scope]
    state: str | None
    code_challenge: str


class RequestRefused(Exception):
    """An authorization request that is refused by sending the browser back to the client."""

    def __init__(self, redirect_uri: str, state: str | None, error: OAuthError) -> None:
        super().__init__(str(error))
        self.redirect_uri = redirect_uri
        self.state = state
        self.error = error


class OAuth:
    """Clients, authorization codes, and the tokens that they give."""

    def __init__(self, shared: Shared, sessions: Sessions, built_in: Mapping[str, Client]) -> None:
        self._shared = shared
        self._database = database = shared.database
        self._sessions = sessions
        self._events = shared.events
        self._clock = shared.clock
        self._built_in = built_in
        # Each call of a company that sends its secret begins with it.
        self._by_id = BatchLoader[str, Client](
            lambda ids: database.read(lambda stored: stored.oauth_clients.find_several(ids))
        )

    async def read_request(self, parameters: Mapping[str, str]) -> AuthorizationRequest:
        """Return the authorization request (RFC 6749, 4.1.1).

        Raises OAuthError until the redirect URI is known to be the client's, RequestRefused after
        that.
        """
        client = await self.find_client(parameters.get("client_id", ""))
        redirect_uri = parameters.get("redirect_uri", "")
        if client is None:
            raise OAuthError("invalid_request", "There is no such client.")
        if not client.accepts_redirect(redirect_uri):
            raise OAuthError("invalid_request", "The redirect_uri is not one of the client's.")
        state = parameters.get("state")
        try:
            client.check_grant(Grant.AUTHORIZATION_CODE)
            challenge = _read_challenge(parameters)
            scopes = client.allowed_by_users(_read_scopes(parameters))
        except OAuthError as error:
            raise RequestRefused(redirect_uri, state, error) from error
        return AuthorizationRequest(
            client=client,
            redirect_uri=redirect_uri,
            scopes=scopes,
            state=state,
            code_challenge=challenge,
        )

    async def grant(self, request: AuthorizationRequest, email: str, password: str) -> str:
        """Return an authorization code of the user.

        Raises InvalidCredentials, AccountDisabled, or OAuthError if the client is no longer what
        the user has been shown.
        """
        credentials = await verify_credentials(self._shared, email, password)
        try:
            return await self._grant(request, credentials)
        except InvalidCredentials:  # changed or disabled since the password was verified
            await self._events.record_failed_sign_in(parse_email(email).key, "changed-meanwhile")
            raise

    @retried
    async def _grant(self, request: AuthorizationRequest, credentials: Credentials) -> str:
        user_id, event = credentials.user_id, SecurityEvent.SIGN_IN_SUCCEEDED
        async with self._database.transaction() as repositories:
            code = await self._add_code(repositories, request, user_id, credentials.password_hash)
            await self._events.record(repositories, event, user_id, self._clock(), reason="oauth")
        return code

    @retried
    async def grant_signed_in(self, request: AuthorizationRequest, signed_in: AccessToken) -> str:
        """Return an authorization code of the user signed in to the page, and end that session.

        Raises InvalidToken if it has ended, and what `grant` does.
        """
        assert signed_in.user_id is not None
        now = self._clock()
        async with self._database.transaction() as repositories:
            code = await self._add_code(repositories, request, signed_in.user_id, None)
            if not await repositories.sessions.end_own(
                signed_in.session_id, signed_in.user_id, now
            ):
                raise InvalidToken
            keys = [session_key(signed_in.session_id)]
            await self._shared.invalidation.invalidate(repositories, keys, now)
        return code

    async def find_signed_in(self, token: str) -> AccessToken | None:
        """Return the claims of the sign-in page's token, if its session is still open."""
        try:
            found = await self._sessions.authenticate(token)
        except InvalidToken:
            return None
        return found if found.client_id == SIGN_IN_PAGE else None

    async def _add_code(
        self,
        repositories: Repositories,
        request: AuthorizationRequest,
        user_id: UUID,
        password_hash: str | None,
    ) -> str:
        """Store an authorization code in the caller's transaction, and return it."""
        client = await self._share(repositories, request.client)
        if (
            client is None
            or client.may_less_than(request.client)
            or not client.has_redirects_of(request.client)
        ):
            raise OAuthError("invalid_request", "The application has just been changed.")
        secret = new_secret()
        now = self._clock()
        code = AuthorizationCode(
            code_hash=hash_secret(secret),
            client_id=request.client.client_id,
            user_id=user_id,
            redirect_uri=request.redirect_uri,
            scopes=request.scopes,
            code_challenge=request.code_challenge,
            created_at=now,
            expires_at=now + CODE_LIVES,
        )
        if not await repositories.authorization_codes.add(code, password_hash):
            raise InvalidCredentials  # changed or disabled since it was read
        return secret

    @retried
    async def redeem(
        self, client: Client, parameters: Mapping[str, str], user_agent: str | None
    ) -> Tokens:
        """Return the tokens for an authorization code (RFC 6749, 4.1.3).

        A code is good for one use. Sent again, it or what it gave was stolen: its session ends, but
        only if the second request proves to come from the client that the code was made for.
        Otherwise anyone who has seen a code could sign its user out.
        """
        client.check_grant(Grant.AUTHORIZATION_CODE)
        refused = OAuthError(
            "invalid_grant", "The code is unknown, expired, redeemed or not this client's."
        )
        code_hash = hash_secret(parameters.get("code", ""))
        now = self._clock()
        async with self._database.transaction() as repositories:
            if await self._share(repositories, client) is None:
                raise refused
            await repositories.authorization_codes.lock_user(code_hash)
            code = await repositories.authorization_codes.lock(code_hash)
            if code is None or not code.fits(
                client.client_id,
                parameters.get("redirect_uri", ""),
                parameters.get("code_verifier", ""),
            ):
                raise refused
            if not code.redeemed:
                if code.expires_at <= now:
                    raise refused
                user = await repositories.users.find(code.user_id)
                if user is None:
                    raise refused
                try:
                    opened = await self._sessions.open_session(
                        repositories,
                        code.user_id,
                        user.role,
                        origin="authorization_code",
                        client_id=client.client_id,
                        scopes=code.scopes,
                        user_agent=user_agent,
                    )
                except InvalidCredentials as error:
                    raise refused from error
                except ScopeExceeded as error:
                    raise OAuthError("invalid_scope", str(error)) from error
                await repositories.authorization_codes.redeem(code_hash, opened.session_id, now)
                return opened
            await self._events.record(
                repositories, SecurityEvent.AUTHORIZATION_CODE_REUSED, code.user_id, now
            )
        if code.session_id is not None:
            await self._sessions.revoke(code.session_id, reason="authorization-code-reused")
        raise refused

    async def refresh(self, client: Client, parameters: Mapping[str, str]) -> Tokens:
        """Return the next tokens for a refresh token (RFC 6749, 6)."""
        client.check_grant(Grant.REFRESH_TOKEN)
        try:
            return await self._sessions.refresh(
                parameters.get("refresh_token", ""), client.client_id, _read_scopes(parameters)
            )
        except InvalidToken as error:
            raise OAuthError("invalid_grant", error.detail) from error
        except ScopeExceeded as error:
            raise OAuthError("invalid_scope", str(error)) from error

    async def sign_client_in(self, client: Client, parameters: Mapping[str, str]) -> Tokens:
        """Return an access token of the client's own (RFC 6749, 4.4)."""
        client.check_grant(Grant.CLIENT_CREDENTIALS)
        scopes = client.allowed_for_itself(_read_scopes(parameters))
        try:
            return await self._sessions.open_of_client(client.client_id, scopes)
        except InvalidCredentials as error:  # changed or deleted since it was read
            raise OAuthError("invalid_client", "The client has just been changed.") from error

    async def revoke(self, client: Client, token: str) -> None:
        """End the session of one of the client's tokens, of either kind (RFC 7009).

        Does nothing for a token that no longer works, or is another client's.
        """
        found, _ = await self._find(token)
        if found is not None and found.client_id == client.client_id:
            await self._sessions.revoke(found.session_id, reason="token-revoked")

    async def introspect(self, client: Client, token: str) -> AccessToken | Session | None:
        """Return what a token is good for (RFC 7662); None if it has no effect.

        Another client's token has none either, unless a resource server asks.
        """
        found, works = await self._find(token)
        if found is None or not works:
            return None
        return found if client.resource_server or found.client_id == client.client_id else None

    async def _find(self, token: str) -> tuple[AccessToken | Session | None, bool]:
        """Return an access token's claims, or a refresh token's session, and whether it works.

        An older refresh token of a session does not.
        """
        try:
            return await self._sessions.authenticate(token), True
        except InvalidToken:
            pass
        try:
            return await self._sessions.find_by_refresh_token(token)
        except InvalidToken:
            return None, False

    async def authenticate(self, client_id: str, secret: str | None) -> Client:
        """Return the client; raise OAuthError unless the secret is its own, or neither has one."""
        client = await self.find_client(client_id)
        if (
            client is None
            or (client.is_confidential and secret is None)
            or (secret is not None and not client.has_secret(secret, self._clock()))
        ):
            self._events.log_refused_client(client.client_id if client else None)
            raise OAuthError("invalid_client", "The client is unknown, or its secret is wrong.")
        return client

    async def act_as_client(self, client_id: str, secret: str) -> AccessToken:
        """Return what an access token of the client's own would say; raise OAuthError.

        For clients that send their secret with each call instead of asking for a token.
        """
        client = await self.authenticate(client_id, secret)
        now = self._clock()
        return AccessToken(
            token_id="",
            subject=client_id,
            client_id=client_id,
            session_id=_NO_SESSION,
            scopes=client.own_scopes,
            issued_at=now,
            expires_at=now,
            user_id=None,
        )

    async def find_client(self, client_id: str) -> Client | None:
        if built_in := self._built_in.get(client_id):
            return built_in
        if not client_id.isascii() or not client_id.isprintable():
            return None  # PostgreSQL accepts neither NUL nor half a surrogate pair
        return await self._by_id.find(client_id)

    async def _share(self, repositories: Repositories, client: Client) -> Client | None:
        """Return the client as it stays until the transaction ends, if it still exists."""
        if client.client_id in self._built_in:
            return client
        return await repositories.oauth_clients.share(client.client_id)


def _read_challenge(parameters: Mapping[str, str]) -> str:
    """Return the PKCE challenge of a request for a code; raise OAuthError."""
    if "response_type" not in parameters:
        raise OAuthError("invalid_request", "There is no response_type.")
    if parameters["response_type"] != "code":
        raise OAuthError("unsupported_response_type", "Only `code` is supported.")
    challenge = parameters.get("code_challenge", "")
    if parameters.get("code_challenge_method") != "S256" or not is_challenge(challenge):
        raise OAuthError("invalid_request", "PKCE is required: a code_challenge of method S256.")
    return challenge


def _read_scopes(parameters: Mapping[str, str]) -> frozenset[Scope] | None:
    """Return the scopes asked for, None for no wish; raise OAuthError at an unknown one."""
    try:
        return parse_scopes(parameters.get("scope", "")) or None
    except ValueError as error:
        raise OAuthError("invalid_scope", "There is no such scope.") from error
