"""What a session is: one sign-in, from login to its end."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from service.domain.scopes import Scope
from service.domain.users import Role

RECENT: Final = timedelta(minutes=10)
LONGEST_USER_AGENT: Final = 200
"""In characters: what is kept of a User-Agent header."""
MOST_OPEN_SESSIONS: Final = 100
"""Per user: another sign-in ends the oldest."""
ENDED_KEPT_FOR: Final = timedelta(days=1)
"""For operators who investigate."""
FIRST_PARTY: Final = "first-party"
"""`client_id` of what signs in at /auth/login."""
SWAGGER_UI: Final = "swagger-ui"
"""`client_id` of the page at /docs, which is part of the service."""
SIGN_IN_PAGE: Final = "sign-in-page"
"""`client_id` of the tokens by which /oauth/authorize recognises a browser, and of no session."""
OURS: Final = frozenset({FIRST_PARTY, SWAGGER_UI})
"""The clients that are part of this service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One sign-in of a user to a client, or a client's own, without a user.

    `counter` counts the rotations of its refresh token, `origin` is how it began. `scopes` are what
    the user granted; None is all that the user may do, now and later.
    """

    session_id: UUID
    user_id: UUID | None
    client_id: str = FIRST_PARTY
    origin: str = "password"
    scopes: frozenset[Scope] | None = None
    counter: int = 0
    user_agent: str | None = None
    created_at: datetime
    refreshed_at: datetime
    expires_at: datetime

    def has_just_begun(self, now: datetime) -> bool:
        """Whether its user has just signed in here, which replaces a missing password."""
        return self.client_id == FIRST_PARTY and now < self.created_at + RECENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The user who makes the request, and in which session."""

    user_id: UUID
    session_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What signing in or refreshing gives.

    `expires_in` is the access token's life in seconds. A client's own session has no refresh token:
    the client can always sign in again.
    """

    access_token: str
    expires_in: int
    refresh_token: str | None
    scopes: frozenset[Scope]
    session_id: UUID
    user_id: UUID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What is stored to verify a password against."""

    user_id: UUID
    role: Role
    password_hash: str
    disabled: bool
    email_confirmed: bool
    awaits_confirmation: bool
