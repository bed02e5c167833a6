"""Signing in with another issuer: who somebody is there, and the way there and back."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from service.domain.users import Email

SIGN_IN_LIVES: Final = timedelta(minutes=10)


class IdentityTaken(Exception):
    """Another sign-in has just stored this identity: to be looked for again, and told to nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who somebody is to an issuer. `issuer` and `subject` name the person, and nothing else does.

    `email` is None where the issuer gives none that an account can have. `email_verified` is
    what the issuer says of it.
    """

    issuer: str
    subject: str
    email: Email | None
    email_verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """A sign-in that has begun: what the issuer's answer is checked against, once."""

    state_hash: bytes
    browser_hash: bytes
    provider: str
    nonce: str
    code_verifier: str
    referral_code: str | None
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationAnswer:
    """What an issuer sends a browser back with (RFC 6749, 4.1.2; `issuer`: RFC 9207)."""

    code: str | None
    error: str | None
    issuer: str | None
