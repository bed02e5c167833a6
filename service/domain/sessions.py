"""What a session is: one sign-in, from login to its end."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from service.domain.users import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One sign-in of a user. `counter` is how often its refresh token was rotated."""

    session_id: UUID
    user_id: UUID
    counter: int
    user_agent: str | None
    created_at: datetime
    refreshed_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes the request: what a valid access token of an open session proves."""

    user_id: UUID
    session_id: UUID
    scope: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What signing in or refreshing gives. `expires_in` is the access token's life in seconds."""

    access_token: str
    expires_in: int
    refresh_token: str
    user_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What the database knows for checking a password."""

    user_id: UUID
    role: Role
    password_hash: str
    disabled: bool
