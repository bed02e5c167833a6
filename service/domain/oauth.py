"""The authorization server's terms: clients, authorization codes, and how requests fail.

RFC 6749, RFC 7636 (PKCE, S256 alone), RFC 9207 (`iss`), and what RFC 9700 has made of them.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from service.domain.scopes import Scope

CODE_LIVES: Final = timedelta(seconds=60)
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_ENCODED_256_BITS: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_LOOPBACK: Final = re.compile(r"(http://(?:127\.0\.0\.1|\[::1\]))(?::([0-9]{1,5}))?([/?].*)?")


class OAuthError(Exception):
    """A request that is refused in the words of RFC 6749: `code` is its `error`."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(f"{code}: {description}")
        self.code = code
        self.description = description


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """An application that asks for tokens. Without a secret's hash it is public (RFC 6749, 2.1)."""

    client_id: str
    name: str
    secret_hash: bytes | None
    redirect_uris: tuple[str, ...]
    scopes: frozenset[Scope]

    @property
    def is_confidential(self) -> bool:
        return self.secret_hash is not None

    def has_secret(self, secret: str) -> bool:
        """Whether `secret` is the client's."""
        return self.secret_hash is not None and hmac.compare_digest(
            hash_secret(secret), self.secret_hash
        )

    def accepts_redirect(self, uri: str) -> bool:
        """Whether browsers may be sent to `uri`: one of the client's own, exactly.

        On the loopback addresses the port is free: a native app listens where it can (RFC 8252,
        7.3). Not on `localhost`, which may be another machine.
        """
        return uri in self.redirect_uris or (
            (wanted := _without_port(uri)) is not None
            and wanted in map(_without_port, self.redirect_uris)
        )

    def allowed(self, asked: Collection[Scope] | None) -> frozenset[Scope]:
        """Return the asked scopes, or all that the client may have; raise OAuthError."""
        if not asked:
            return self.scopes
        if not self.scopes.issuperset(asked):
            raise OAuthError("invalid_scope", "The client may not have this scope.")
        return frozenset(asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationCode:
    """What a user has granted, until the client redeems it."""

    code_hash: bytes
    client_id: str
    user_id: UUID
    redirect_uri: str
    scopes: frozenset[Scope]
    code_challenge: str
    created_at: datetime
    expires_at: datetime
    session_id: UUID | None = None
    redeemed: bool = False

    def fits(self, client_id: str, redirect_uri: str, verifier: str) -> bool:
        """Whether the request to redeem is from whom the code was made for (RFC 7636, 4.6)."""
        return (
            self.client_id == client_id
            and self.redirect_uri == redirect_uri
            and _VERIFIER.fullmatch(verifier) is not None
            and hmac.compare_digest(challenge_of(verifier), self.code_challenge)
        )


def new_secret() -> str:
    """Return 256 random bits: a client's secret, or an authorization code."""
    return secrets.token_urlsafe(32)


def is_secret(text: str) -> bool:
    """Whether `text` can be what `new_secret` returns."""
    return _ENCODED_256_BITS.fullmatch(text) is not None


def hash_secret(secret: str) -> bytes:
    """Return what is stored of a secret of 256 random bits."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def challenge_of(verifier: str) -> str:
    """Return the S256 challenge of a PKCE verifier (RFC 7636, 4.2)."""
    digest = hashlib.sha256(verifier.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def is_challenge(text: str) -> bool:
    """Whether `text` can be an S256 challenge."""
    return _ENCODED_256_BITS.fullmatch(text) is not None


def _without_port(uri: str) -> str | None:
    """Return an address on loopback without its port; None for any other address."""
    found = _LOOPBACK.fullmatch(uri)
    if found is None or not 0 < int(found[2] or 80) < 2**16:
        return None
    return found[1] + (found[3] or "")


def check_redirect_uri(uri: str) -> None:
    """Raise ValueError unless browsers may be sent to `uri` (RFC 9700, 4.1; RFC 8252, 7).

    It is https, or http on the user's own machine, or a scheme of an app's own with a dot in it.
    """
    parts = urlsplit(uri)
    local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if (
        not uri.isascii()
        or not uri.isprintable()
        or " " in uri
        or parts.fragment
        or "#" in uri
        or parts.username is not None
        or not (
            (parts.scheme == "https" and parts.hostname)
            or (parts.scheme == "http" and local)
            or "." in parts.scheme
        )
    ):
        raise ValueError(f"{uri!r} is not an address that browsers may be sent to.")
