"""Access tokens (JWT) and refresh tokens (opaque), made and read.

An access token is an ES256 JWT after RFC 9068. A refresh token is 48 bytes: the session's id,
how often it was rotated, and an HMAC over both. The session's row holds the same counter, so a
refresh needs no table of tokens, and an old token shows itself by its smaller counter.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from uuid6 import uuid7

from service.domain.errors import InvalidToken
from service.domain.scopes import Scope, parse_scopes, to_text

LEEWAY: Final = timedelta(seconds=5)
"""How far the clocks of two machines may differ."""
_ALGORITHM: Final = "ES256"
_TYPE: Final = "at+jwt"
_CLAIMS: Final = ["iss", "aud", "sub", "client_id", "scope", "iat", "exp", "jti", "sid"]
JWKS_MAX_AGE: Final = timedelta(minutes=10)
"""How long others may keep the public keys: a new key is shown so long before it signs."""
MOST_VERIFIED: Final = 4096
"""Verified tokens that are remembered: 3 MiB."""
_MAC_BYTES: Final = 24
_SIGNS_FROM: Final = "signs_from"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """What a verified access token says. `subject` is a user's id, or the client's own."""

    token_id: str
    subject: str
    client_id: str
    session_id: UUID
    scopes: frozenset[Scope]
    issued_at: datetime
    expires_at: datetime
    user_id: UUID | None = field(init=False)
    """Whose token it is; None where a client speaks for itself."""

    def __post_init__(self) -> None:
        """Raise ValueError unless `subject` is a user's id, or the client's own."""
        user_id = None if self.subject == self.client_id else UUID(self.subject)
        object.__setattr__(self, "user_id", user_id)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """Which session a refresh token belongs to, and after how many rotations it was made."""

    session_id: UUID
    counter: int


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """A private P-256 key. `key_id` is its thumbprint (RFC 7638).

    It signs from `signs_from` until the next key does; before it is *next*, then *active*, then
    *retired*, and it is shown and verifies in all three states.
    """

    key_id: str
    private: ec.EllipticCurvePrivateKey
    signs_from: datetime

    @classmethod
    def generate(cls, signs_from: datetime = EPOCH) -> Self:
        return cls._of(ec.generate_private_key(ec.SECP256R1()), signs_from)

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> Self:
        """Return the key; raise ValueError or PyJWTError unless it is a private P-256 key."""
        key = ECAlgorithm.from_jwk(dict(jwk))
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise ValueError("not a private P-256 key")
        return cls._of(key, datetime.fromtimestamp(jwk.get(_SIGNS_FROM, 0), UTC))

    @classmethod
    def _of(cls, private: ec.EllipticCurvePrivateKey, signs_from: datetime) -> Self:
        members = _public_members(private)
        canonical = json.dumps(
            {name: members[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":")
        )
        return cls(_encode(hashlib.sha256(canonical.encode()).digest()), private, signs_from)

    def to_jwk(self) -> dict[str, Any]:
        """Return the private key as a JWK (RFC 7517): a secret."""
        members = ECAlgorithm.to_jwk(self.private, as_dict=True)
        return {**members, "kid": self.key_id, _SIGNS_FROM: int(self.signs_from.timestamp())}

    def to_public_jwk(self) -> dict[str, Any]:
        """Return what anyone needs to verify the key's signatures."""
        members = _public_members(self.private)
        return {**members, "kid": self.key_id, "use": "sig", "alg": _ALGORITHM}


class SigningKeys:
    """The keys of the service, in the order in which they sign."""

    def __init__(self, keys: Sequence[SigningKey]) -> None:
        if not keys:
            raise ValueError("no signing key")
        # Of two that begin at the same moment, the one named first comes last, and signs.
        backwards = list(reversed(keys))
        self.keys = sorted(backwards, key=lambda key: key.signs_from)
        self._public = {key.key_id: key.private.public_key() for key in keys}

    def active(self, now: datetime) -> SigningKey:
        """Return the key that signs now."""
        begun = [key for key in self.keys if key.signs_from <= now]
        return begun[-1] if begun else self.keys[0]

    def find(self, key_id: object) -> ec.EllipticCurvePublicKey | None:
        """Return the public key of that id: a look-up in memory, whatever the token says."""
        return self._public.get(key_id) if isinstance(key_id, str) else None

    def rotated(self, now: datetime, lifetime: timedelta) -> "SigningKeys":
        """Return the keys with a new one, and without those whose last tokens have expired.

        The new one signs after twice JWKS_MAX_AGE: once for the operator to restart all
        processes with it, once for others to see it. `lifetime` is an access token's.
        """
        kept = [
            key
            for key, successor in zip(self.keys, [*self.keys[1:], None], strict=True)
            if successor is None or now < successor.signs_from + lifetime + LEEWAY + JWKS_MAX_AGE
        ]
        return SigningKeys([*kept, SigningKey.generate(now + 2 * JWKS_MAX_AGE)])

    def to_jwks(self) -> dict[str, Any]:
        """Return the private keys as a JWK set (RFC 7517): a secret."""
        return {"keys": [key.to_jwk() for key in self.keys]}

    def to_public_jwks(self) -> dict[str, Any]:
        """Return the JWK set that anyone may see."""
        return {"keys": [key.to_public_jwk() for key in self.keys]}


class AccessTokens:
    """Makes and verifies access tokens of one issuer, who is also their audience."""

    def __init__(self, keys: SigningKeys, issuer: str, lifetime: timedelta) -> None:
        self._keys = keys
        self.issuer = issuer
        self.lifetime = lifetime
        self._verified: dict[bytes, AccessToken] = {}
        """By the tokens' digests, which are of no use to whoever reads the memory."""

    def issue(
        self,
        *,
        subject: str,
        client_id: str,
        session_id: UUID,
        scopes: Iterable[Scope],
        now: datetime,
    ) -> str:
        claims = {
            "iss": self.issuer,
            "aud": self.issuer,
            "sub": subject,
            "client_id": client_id,
            "scope": to_text(scopes),
            "iat": int(now.timestamp()),
            "exp": int((now + self.lifetime).timestamp()),
            "jti": str(uuid7()),
            "sid": str(session_id),
        }
        key = self._keys.active(now)
        headers = {"typ": _TYPE, "kid": key.key_id}
        return jwt.encode(claims, key.private, _ALGORITHM, headers=headers)

    def verify(self, token: str, now: datetime) -> AccessToken:
        """Return what `token` says; raise InvalidToken unless it is ours, whole and unexpired.

        A token that was verified once is known again: its signature costs more than a look-up.
        """
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        verified = self._verified.get(digest)
        if verified is None:
            verified = self._verify(token)
            if len(self._verified) >= MOST_VERIFIED:
                del self._verified[next(iter(self._verified))]  # the one verified first
            self._verified[digest] = verified
        if verified.expires_at + LEEWAY <= now:
            self._verified.pop(digest, None)
            raise InvalidToken("The access token has expired.")
        return verified

    def _verify(self, token: str) -> AccessToken:
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.find(header.get("kid"))
            if key is None or header.get("typ") != _TYPE:
                raise InvalidToken
            claims = jwt.decode(
                token,
                key,
                [_ALGORITHM],
                audience=self.issuer,
                issuer=self.issuer,
                # Expiry is compared below, with the service's own clock.
                options={
                    "require": _CLAIMS,
                    "strict_aud": True,
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
            verified = AccessToken(
                token_id=claims["jti"],
                subject=claims["sub"],
                client_id=claims["client_id"],
                session_id=UUID(claims["sid"]),
                scopes=parse_scopes(claims["scope"]),
                issued_at=datetime.fromtimestamp(claims["iat"], UTC),
                expires_at=datetime.fromtimestamp(claims["exp"], UTC),
            )
        # ValueError holds UnicodeError: a header of hostile bytes; the others, claims of odd types.
        except (
            jwt.PyJWTError,
            ValueError,
            TypeError,
            AttributeError,
            OverflowError,
            OSError,
        ) as error:
            raise InvalidToken from error
        return verified


class RefreshTokens:
    """Makes and verifies refresh tokens; the first key makes them, all verify."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys

    def issue(self, session_id: UUID, counter: int) -> str:
        message = session_id.bytes + counter.to_bytes(8, "big")
        return _encode(message + _mac(self._keys[0], message))

    def verify(self, token: str) -> RefreshToken:
        """Return what `token` says; raise InvalidToken unless the service made it."""
        try:
            raw = base64.b64decode(token.encode("ascii"), b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidToken from error
        message, mac = raw[:24], raw[24:]
        if not any(hmac.compare_digest(_mac(key, message), mac) for key in self._keys):
            raise InvalidToken
        return RefreshToken(UUID(bytes=message[:16]), int.from_bytes(message[16:], "big"))


def _public_members(private: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    members: dict[str, Any] = ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
    return members


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, b"refresh token" + message, "sha256")[:_MAC_BYTES]


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
