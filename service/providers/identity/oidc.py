"""Signing in with an OpenID Connect issuer: OpenID Connect Core 1.0, 3.1; Discovery 1.0."""

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import jwt

from service.domain.clock import Clock
from service.domain.errors import ProviderUnavailable, SignInRefused
from service.domain.identities import AuthorizationAnswer, Identity, SignIn, is_safe_url
from service.providers.http import HttpClient, Reply, is_text
from service.providers.identity.authorization import AuthorizationCodeFlow, email_of
from service.providers.settings import OidcSettings
from service.security.signing_keys import EPOCH, LEEWAY

KEPT_FOR: Final = timedelta(hours=1)
"""How long the issuer's description and its keys are cached."""
REFETCH_FLOOR: Final = timedelta(seconds=30)
"""How soon an unknown key causes another fetch."""
LONGEST_SUBJECT: Final = 255
LONGEST_URL: Final = 2048
_BITS: Final = (256, 384, 512)
# No HMACs, which would take a public key for a secret, and no "none".
ALGORITHMS: Final = [*(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in _BITS), "EdDSA"]
# Besides PyJWTError: tokens, claims and keys of odd types, a token of hostile bytes.
_MALFORMED: Final = (jwt.PyJWTError, LookupError, ValueError, TypeError, AttributeError)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metadata:
    """How an issuer describes itself."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None
    takes_basic: bool
    sends_issuer: bool


class OidcProvider:
    """An issuer, known by its exact URL.

    Its description and keys are fetched without a lock: concurrent requests may fetch them
    twice, but none waits for another's slow call.
    """

    def __init__(
        self, settings: OidcSettings, redirect_uri: str, http: HttpClient, clock: Clock
    ) -> None:
        self.name = settings.name
        self.title = settings.title
        self.issuer = settings.issuer
        self._client_id = settings.client_id
        self._http = http
        self._clock = clock
        self._flow = AuthorizationCodeFlow(settings, redirect_uri, http)
        self._metadata: _Metadata | None = None
        self._described_at = EPOCH
        self._keys: dict[str | None, Any] = {}
        self._keys_fetched_at = EPOCH

    async def authorization_url(self, state: str, nonce: str, code_verifier: str) -> str:
        """Return where to send the browser; raise ProviderUnavailable."""
        metadata = await self._discover()
        return self._flow.url(metadata.authorization_endpoint, state, code_verifier, nonce=nonce)

    async def identify(self, answer: AuthorizationAnswer, sign_in: SignIn) -> Identity:
        """Return who has signed in; raise SignInRefused or ProviderUnavailable."""
        metadata = await self._discover()
        # Compared even where the issuer does not announce the parameter: it never names another.
        if answer.issuer != self.issuer and (answer.issuer or metadata.sends_issuer):
            raise SignInRefused("The answer is not from this issuer.")
        tokens = await self._flow.redeem(
            metadata.token_endpoint, answer, sign_in, basic=metadata.takes_basic
        )
        claims = await self._verify(tokens.document, sign_in.nonce, metadata)
        if "email" not in claims:
            claims = await self._ask_for_more(tokens, claims, metadata)
        return Identity(
            issuer=self.issuer,
            subject=claims["sub"],
            email=email_of(claims.get("email")),
            # Some issuers write the boolean as a string.
            email_verified=claims.get("email_verified") in (True, "true"),
        )

    async def _verify(self, tokens: Any, nonce: str, metadata: _Metadata) -> dict[str, Any]:
        """Return the claims of the ID token (Core, 3.1.3.7); raise SignInRefused."""
        try:
            token = tokens["id_token"]
            key = await self._find_key(jwt.get_unverified_header(token).get("kid"), metadata)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                ALGORITHMS,
                audience=self._client_id,
                issuer=self.issuer,
                leeway=LEEWAY,
                options={
                    "require": ["iss", "aud", "sub", "exp", "iat"],
                    # Compared below, with the service's own clock.
                    "verify_exp": False,
                    "verify_iat": False,
                    "enforce_minimum_key_length": True,
                },
            )
            good = (
                claims.get("nonce") == nonce
                and is_text(claims["sub"], LONGEST_SUBJECT)
                and claims["exp"] + LEEWAY.total_seconds() > self._clock().timestamp()
                and claims.get("azp", self._client_id) == self._client_id
                and (claims["aud"] in (self._client_id, [self._client_id]) or "azp" in claims)
            )
        except (*_MALFORMED, RecursionError) as error:
            log.warning("%s: an ID token was refused: %s", self.name, type(error).__name__)
            raise SignInRefused("The issuer's ID token is not valid.") from error
        if not good:
            log.warning("%s: an ID token was refused for its claims", self.name)
            raise SignInRefused("The issuer's ID token is not valid.")
        return claims

    async def _ask_for_more(
        self, tokens: Reply, claims: dict[str, Any], metadata: _Metadata
    ) -> dict[str, Any]:
        """Return the claims, and those of the UserInfo endpoint if there is one (Core, 5.3)."""
        access_token = tokens.text("access_token", 16_384)
        if metadata.userinfo_endpoint is None or access_token is None:
            return claims
        headers = {"Authorization": f"Bearer {access_token}"}
        reply = await self._http.call(self.name, "GET", metadata.userinfo_endpoint, headers=headers)
        if reply.status != 200:
            return claims
        if reply.text("sub", LONGEST_SUBJECT) != claims["sub"]:
            raise SignInRefused("The issuer's answer is about another user.")
        return {**claims, **reply.document}

    async def _discover(self) -> _Metadata:
        now = self._clock()
        if self._metadata is None or now >= self._described_at + KEPT_FOR:
            url = self.issuer.rstrip("/") + "/.well-known/openid-configuration"
            reply = await self._http.call(self.name, "GET", url)
            self._metadata = self._read_metadata(reply)
            self._described_at = now
        return self._metadata

    def _read_metadata(self, reply: Reply) -> _Metadata:
        """Return what the description says; raise ProviderUnavailable if it is of no use."""
        endpoints = {
            name: url
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")
            if self._is_endpoint(url := reply.text(name, LONGEST_URL)) and url
        }
        if reply.status != 200 or reply.text("issuer", LONGEST_URL) != self.issuer:
            raise self._unusable("does not describe itself as the issuer that is configured")
        if len(endpoints) < 3:
            raise self._unusable("lacks an endpoint, or has one without TLS")
        userinfo = reply.text("userinfo_endpoint", LONGEST_URL)
        methods = reply.member("token_endpoint_auth_methods_supported")
        return _Metadata(
            **endpoints,
            userinfo_endpoint=userinfo if self._is_endpoint(userinfo) else None,
            takes_basic=not isinstance(methods, list) or "client_secret_basic" in methods,
            sends_issuer=reply.member("authorization_response_iss_parameter_supported") is True,
        )

    def _is_endpoint(self, url: str | None) -> bool:
        """Whether the URL is as safe to call as the issuer itself."""
        if url is None or "#" in url or not is_safe_url(url):
            return False
        return url.startswith("https:") or not self.issuer.startswith("https:")

    async def _find_key(self, key_id: object, metadata: _Metadata) -> Any:
        """Return the issuer's key of that id, or None; raise ProviderUnavailable."""
        now = self._clock()
        age = now - self._keys_fetched_at
        if age >= KEPT_FOR or (key_id not in self._keys and age >= REFETCH_FLOOR):
            reply = await self._http.call(self.name, "GET", metadata.jwks_uri)
            self._keys = self._read_keys(reply)
            self._keys_fetched_at = now
        return self._keys.get(key_id) if isinstance(key_id, str | None) else None

    def _read_keys(self, reply: Reply) -> dict[str | None, Any]:
        """Return the public keys of a JWK set (RFC 7517) that are of use here, by id."""
        try:
            jwks = [dict(jwk) for jwk in reply.document["keys"]]
        except (LookupError, ValueError, TypeError) as error:
            raise self._unusable("has no JWK set") from error
        keys = {}
        for jwk in jwks:
            key_id = jwk.get("kid")
            signs = jwk.get("use", "sig") == "sig" and jwk.get("kty") in ("RSA", "EC", "OKP")
            if signs and isinstance(key_id, str | None):
                try:
                    keys[key_id] = jwt.PyJWK(jwk).key
                except _MALFORMED:
                    continue  # of a kind that this service does not know
        return keys

    def _unusable(self, reason: str) -> ProviderUnavailable:
        log.error("the issuer of %s %s", self.name, reason)
        return ProviderUnavailable()
