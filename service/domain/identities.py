"""Signing in with another issuer: identities, and the round trip to the issuer."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from service.domain.emails import Email

SIGN_IN_LIVES: Final = timedelta(minutes=10)


class IdentityTaken(Exception):
    """Another sign-in has just stored this identity: look it up again. No client sees this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who somebody is to an issuer: `issuer` and `subject` identify the person, nothing else does.

    `email` is None if the issuer gives none that an account can have. `email_verified` is the
    issuer's claim.
    """

    issuer: str
    subject: str
    email: Email | None
    email_verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedIdentity:
    """An identity that signs in to an account, as the owner of the account sees it.

    `email` is the address that the identity came with, if known. `provider` is the issuer's name in
    the settings; None if it is no longer there, and the identity cannot sign in.
    """

    identity_id: UUID
    issuer: str
    email: str | None
    created_at: datetime
    provider: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """A sign-in that has begun, against which the issuer's answer is checked, once.

    `authorization_request` is the query of the request to /oauth/authorize that it continues with,
    if an application wants access.
    """

    state_hash: bytes
    browser_hash: bytes
    provider: str
    nonce: str
    code_verifier: str
    referral_code: str | None
    created_at: datetime
    expires_at: datetime
    authorization_request: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationAnswer:
    """What an issuer sends a browser back with (RFC 6749, 4.1.2; `issuer`: RFC 9207)."""

    code: str | None
    error: str | None
    issuer: str | None


def is_safe_url(url: str) -> bool:
    """Whether what is sent is protected from others: https, or on loopback."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return False
    on_loopback = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and on_loopback)
    )
