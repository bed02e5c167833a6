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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from uuid6 import uuid7

from service.domain.errors import InvalidToken
from service.domain.users import Role

FIRST_PARTY_CLIENT: Final = "first-party"
"""`client_id` of the tokens that /auth/login gives."""
LEEWAY: Final = timedelta(seconds=5)
"""How far the clocks of two machines may differ."""
_ALGORITHM: Final = "ES256"
_TYPE: Final = "at+jwt"
_CLAIMS: Final = ["iss", "aud", "sub", "client_id", "scope", "iat", "exp", "jti", "sid"]
_MAC_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a verified access token says."""

    user_id: UUID
    session_id: UUID
    scope: frozenset[str]
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """Which session a refresh token belongs to, and after how many rotations it was made."""

    session_id: UUID
    counter: int


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """A private P-256 key. `key_id` is its thumbprint (RFC 7638)."""

    key_id: str
    private: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls) -> Self:
        return cls._of(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> Self:
        """Return the key; raise ValueError or PyJWTError unless it is a private P-256 key."""
        key = ECAlgorithm.from_jwk(dict(jwk))
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise ValueError("not a private P-256 key")
        return cls._of(key)

    @classmethod
    def _of(cls, private: ec.EllipticCurvePrivateKey) -> Self:
        members = ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
        canonical = json.dumps(
            {name: members[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":")
        )
        return cls(_encode(hashlib.sha256(canonical.encode()).digest()), private)

    def to_jwk(self) -> dict[str, Any]:
        """Return the private key as a JWK (RFC 7517): a secret."""
        return {**ECAlgorithm.to_jwk(self.private, as_dict=True), "kid": self.key_id}


class SigningKeys:
    """The keys that verify access tokens; the first one also signs."""

    def __init__(self, keys: Sequence[SigningKey]) -> None:
        if not keys:
            raise ValueError("no signing key")
        self.active = keys[0]
        self._public = {key.key_id: key.private.public_key() for key in keys}

    def find(self, key_id: object) -> ec.EllipticCurvePublicKey | None:
        """Return the public key of that id: a look-up in memory, whatever the token says."""
        return self._public.get(key_id) if isinstance(key_id, str) else None


class AccessTokens:
    """Makes and verifies access tokens of one issuer, who is also their audience."""

    def __init__(self, keys: SigningKeys, issuer: str, lifetime: timedelta) -> None:
        self._keys = keys
        self._issuer = issuer
        self.lifetime = lifetime

    def issue(self, user_id: UUID, role: Role, session_id: UUID, now: datetime) -> str:
        """Return an access token with all scopes that `role` has."""
        claims = {
            "iss": self._issuer,
            "aud": self._issuer,
            "sub": str(user_id),
            "client_id": FIRST_PARTY_CLIENT,
            "scope": " ".join(role.scope),
            "iat": int(now.timestamp()),
            "exp": int((now + self.lifetime).timestamp()),
            "jti": str(uuid7()),
            "sid": str(session_id),
        }
        key = self._keys.active
        return jwt.encode(
            claims, key.private, _ALGORITHM, headers={"typ": _TYPE, "kid": key.key_id}
        )

    def verify(self, token: str, now: datetime) -> AccessToken:
        """Return what `token` says; raise InvalidToken unless it is ours, whole and unexpired."""
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.find(header.get("kid"))
            if key is None or header.get("typ") != _TYPE:
                raise InvalidToken
            claims = jwt.decode(
                token,
                key,
                [_ALGORITHM],
                audience=self._issuer,
                issuer=self._issuer,
                # Expiry is compared below, with the service's own clock.
                options={
                    "require": _CLAIMS,
                    "strict_aud": True,
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
            expires_at = datetime.fromtimestamp(claims["exp"], UTC)
            verified = AccessToken(
                UUID(claims["sub"]),
                UUID(claims["sid"]),
                frozenset(claims["scope"].split()),
                expires_at,
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
        if expires_at + LEEWAY <= now:
            raise InvalidToken("The access token has expired.")
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


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, b"refresh token" + message, "sha256")[:_MAC_BYTES]


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
