"""The keys that sign access tokens, as private and as public JWKs (RFC 7517)."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

ALGORITHM: Final = "ES256"
LEEWAY: Final = timedelta(seconds=5)
"""How far the clocks of two machines may differ."""
JWKS_MAX_AGE: Final = timedelta(minutes=10)
"""How long others may cache the public keys: a new key is published so long before it signs."""
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SIGNS_FROM: Final = "signs_from"


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """A private P-256 key. `key_id` is its thumbprint (RFC 7638).

    It signs from `signs_from` until the next key does. *Next*, *active* or *retired*, it is
    published and verifies.
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
        members = ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
        canonical = json.dumps(
            {name: members[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":")
        )
        digest = hashlib.sha256(canonical.encode()).digest()
        return cls(base64.urlsafe_b64encode(digest).rstrip(b"=").decode(), private, signs_from)

    def to_jwk(self) -> dict[str, Any]:
        """Return the private key: a secret."""
        members = ECAlgorithm.to_jwk(self.private, as_dict=True)
        return {**members, "kid": self.key_id, _SIGNS_FROM: int(self.signs_from.timestamp())}

    def to_public_jwk(self) -> dict[str, Any]:
        members = ECAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**members, "kid": self.key_id, "use": "sig", "alg": ALGORITHM}


class SigningKeys:
    """The keys of the service, in the order in which they sign."""

    def __init__(self, keys: Sequence[SigningKey]) -> None:
        if not keys:
            raise ValueError("no signing key")
        # Of two that start at the same moment, the one named first comes last, and signs.
        backwards = list(reversed(keys))
        self.keys = sorted(backwards, key=lambda key: key.signs_from)
        self._public = {key.key_id: key.private.public_key() for key in keys}

    def active(self, now: datetime) -> SigningKey:
        """Return the key that signs now."""
        started = [key for key in self.keys if key.signs_from <= now]
        return started[-1] if started else self.keys[0]

    def find(self, key_id: object) -> ec.EllipticCurvePublicKey | None:
        """Return the public key of that id."""
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
        """Return the private keys as a JWK set: a secret."""
        return {"keys": [key.to_jwk() for key in self.keys]}

    def to_public_jwks(self) -> dict[str, Any]:
        return {"keys": [key.to_public_jwk() for key in self.keys]}
