"""The authorization server's terms: clients, authorization codes, and how requests fail.

RFC 6749, RFC 7636 (PKCE, only S256), RFC 9207 (`iss`), and RFC 9700's advice on them.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from service.domain.operators import OperatorError
from service.domain.scopes import OF_CLIENTS, Scope, to_text

CODE_LIVES: Final = timedelta(seconds=60)
CODE_KEPT_FOR: Final = timedelta(days=1)
"""After its expiry: a replay still ends the session that the code gave."""
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_ENCODED_256_BITS: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_LOOPBACK: Final = re.compile(r"(http://(?:127\.0\.0\.1|\[::1\]))(?::([0-9]{1,5}))?([/?].*)?")


class OAuthError(Exception):
    """A request refused as RFC 6749 defines: `code` is its `error`."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(f"{code}: {description}")
        self.code = code
        self.description = description


class Grant(StrEnum):
    """How a client may ask for tokens: the `grant_type` values of RFC 6749."""

    AUTHORIZATION_CODE = "authorization_code"
    REFRESH_TOKEN = "refresh_token"  # noqa: S105  # a name
    CLIENT_CREDENTIALS = "client_credentials"


GRANTS_FOR_USERS: Final = frozenset({Grant.AUTHORIZATION_CODE, Grant.REFRESH_TOKEN})


class ClientFaulty(OperatorError):
    """A client cannot be as it is described: one sentence for the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """An application that asks for tokens. Without a secret's hash it is public (RFC 6749, 2.1).

    `scopes` are what users may grant it, `own_scopes` what it may do on its own behalf. A resource
    server may introspect other clients' tokens. While a secret is being replaced, the previous one
    works until `previous_secret_expires_at`.
    """

    client_id: str
    name: str
    secret_hash: bytes | None
    redirect_uris: tuple[str, ...]
    scopes: frozenset[Scope]
    grants: frozenset[Grant] = frozenset()
    own_scopes: frozenset[Scope] = frozenset()
    resource_server: bool = False
    previous_secret_hash: bytes | None = None
    previous_secret_expires_at: datetime | None = None

    @property
    def is_confidential(self) -> bool:
        return self.secret_hash is not None

    def has_secret(self, secret: str, now: datetime) -> bool:
        """Whether `secret` is the client's, or its previous one that still works."""
        hashes = [self.secret_hash]
        if self.previous_secret_expires_at and now < self.previous_secret_expires_at:
            hashes.append(self.previous_secret_hash)
        sent = hash_secret(secret)
        return any(known is not None and hmac.compare_digest(sent, known) for known in hashes)

    def check_grant(self, grant: Grant) -> None:
        """Raise OAuthError unless the client has the grant."""
        if grant not in self.grants:
            raise OAuthError("unauthorized_client", f"The client may not use {grant}.")

    def allowed_by_users(self, asked: Collection[Scope] | None) -> frozenset[Scope]:
        """Return the asked scopes, or all that users may grant the client; raise OAuthError."""
        return _allowed(self.scopes, asked)

    def allowed_for_itself(self, asked: Collection[Scope] | None) -> frozenset[Scope]:
        """Return the asked scopes, or all that are the client's own; raise OAuthError."""
        return _allowed(self.own_scopes, asked)

    def completed(self) -> "Client":
        """Return the client with the grants that its redirect URIs and own scopes call for.

        Raises ClientFaulty if they contradict each other, or the client could do nothing.
        """
        _check(self)
        grants = GRANTS_FOR_USERS if self.redirect_uris else frozenset[Grant]()
        if self.own_scopes:
            grants |= {Grant.CLIENT_CREDENTIALS}
        return replace(
            self, grants=grants, scopes=self.scopes if self.redirect_uris else frozenset()
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

    def has_redirects_of(self, other: "Client") -> bool:
        """Whether the client has all redirect URIs of `other`."""
        return set(other.redirect_uris) <= set(self.redirect_uris)

    def may_less_than(self, other: "Client") -> bool:
        """Whether `other` has a grant or a scope that this one lacks."""
        return not (
            other.grants <= self.grants
            and other.scopes <= self.scopes
            and other.own_scopes <= self.own_scopes
        )


def _allowed(scopes: frozenset[Scope], asked: Collection[Scope] | None) -> frozenset[Scope]:
    wanted = frozenset(asked or scopes)
    if not wanted or not wanted <= scopes:
        raise OAuthError("invalid_scope", "The client may not have this scope.")
    return wanted


def _check(client: Client) -> None:
    """Raise ClientFaulty if the parts of a client contradict each other."""
    for uri in client.redirect_uris:
        check_redirect_uri(uri)
    if not client.name.strip():
        raise ClientFaulty("A client needs a name.")
    if meaningless := client.own_scopes - OF_CLIENTS:
        raise ClientFaulty(
            f"{to_text(meaningless)} means nothing to a client that acts for itself: it has no "
            f"account and no code. For itself it can have {to_text(OF_CLIENTS)}."
        )
    if not client.is_confidential:
        if client.own_scopes or client.resource_server:
            raise ClientFaulty(
                "A public client can keep no secret: it cannot act for itself, nor be a resource "
                "server. Make it confidential."
            )
        if not client.redirect_uris:
            raise ClientFaulty("A public client needs a redirect URI.")
    if client.redirect_uris and not client.scopes:
        raise ClientFaulty("There has to be a scope that users can allow the client.")
    if not (client.redirect_uris or client.own_scopes or client.resource_server):
        raise ClientFaulty(
            "The client could do nothing. Give it a redirect URI to act for users, a scope "
            f"({to_text(OF_CLIENTS)}) to act for itself, or make it a resource server."
        )


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
        """Whether the request comes from the client the code was made for (RFC 7636, 4.6)."""
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
    """Return the hash that is stored of a secret of 256 random bits."""
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
    """Raise ClientFaulty unless browsers may be sent to `uri` (RFC 9700, 4.1; RFC 8252, 7).

    It is https, or http on the user's own machine, or a scheme of an app's own with a dot in it.
    """
    fault = ClientFaulty(f"{uri!r} is not an address that browsers may be sent to.")
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # an unmatched bracket
        raise fault from error
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
        raise fault
