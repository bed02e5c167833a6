"""Refresh tokens: the session's id, how often it was refreshed, and an HMAC over both.

The session's row holds the same counter: a refresh needs no table of tokens, and a smaller
counter gives an old token away.
"""

import base64
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from service.domain.errors import InvalidToken


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """The session that a refresh token belongs to, and after how many refreshes it was made."""

    session_id: UUID
    counter: int


class RefreshTokens:
    """Makes and verifies refresh tokens; the first key makes them, all verify."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys

    def issue(self, session_id: UUID, counter: int) -> str:
        message = session_id.bytes + counter.to_bytes(8, "big")
        return base64.urlsafe_b64encode(message + _mac(self._keys[0], message)).decode()

    def verify(self, token: str) -> RefreshToken:
        """Return what `token` says; raise InvalidToken unless the service made it."""
        try:
            raw = base64.b64decode(token.encode("ascii"), b"-_", validate=True)
        except ValueError as error:  # binascii.Error and UnicodeError are ones
            raise InvalidToken from error
        message, mac = raw[:24], raw[24:]
        if not any(hmac.compare_digest(_mac(key, message), mac) for key in self._keys):
            raise InvalidToken
        return RefreshToken(UUID(bytes=message[:16]), int.from_bytes(message[16:], "big"))


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, b"refresh token" + message, "sha256")[:24]
