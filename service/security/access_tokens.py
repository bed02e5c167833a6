"""Access tokens: ES256 JWTs after RFC 9068.

They can be revoked: whether the session is still open is checked on every request, and cached.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import jwt
from jwt.types import Options
from uuid6 import uuid7

from service.domain.errors import InvalidToken
from service.domain.scopes import Scope, known_scopes, to_text
from service.security.signing_keys import ALGORITHM, LEEWAY, SigningKeys

_TYPE: Final = "at+jwt"
_DECODING: Final[Options] = {
    "require": ["iss", "aud", "sub", "client_id", "scope", "iat", "exp", "jti", "sid"],
    "strict_aud": True,
    # Expiry is compared below, with the service's own clock.
    "verify_exp": False,
    "verify_iat": False,
}
MOST_VERIFIED: Final = 4096
"""Verified tokens that are remembered: 3 MiB."""


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
    user_id: UUID | None
    """None where a client acts for itself."""


class AccessTokens:
    """Makes and verifies access tokens of one issuer, which is also their audience."""

    def __init__(self, keys: SigningKeys, issuer: str, lifetime: timedelta) -> None:
        self._keys = keys
        self.issuer = issuer
        self.lifetime = lifetime
        # By the tokens' digests, which are of no use to anyone who reads the memory.
        self._verified: dict[bytes, AccessToken] = {}

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
        return jwt.encode(claims, key.private, ALGORITHM, headers=headers)

    def verify(self, token: str, now: datetime) -> AccessToken:
        """Return what `token` says; raise InvalidToken unless it is ours, intact and unexpired.

        Verified tokens are remembered: a signature costs more than a look-up.
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
                token, key, [ALGORITHM], audience=self.issuer, issuer=self.issuer, options=_DECODING
            )
            subject, client_id = claims["sub"], claims["client_id"]
            return AccessToken(
                token_id=claims["jti"],
                subject=subject,
                client_id=client_id,
                session_id=UUID(claims["sid"]),
                scopes=known_scopes(claims["scope"]),
                issued_at=datetime.fromtimestamp(claims["iat"], UTC),
                expires_at=datetime.fromtimestamp(claims["exp"], UTC),
                user_id=None if subject == client_id else UUID(subject),
            )
        # Besides PyJWTError: a header of hostile bytes (ValueError), claims of odd types.
        except (
            jwt.PyJWTError,
            ValueError,
            TypeError,
            AttributeError,
            OverflowError,
            OSError,
        ) as error:
            raise InvalidToken from error
