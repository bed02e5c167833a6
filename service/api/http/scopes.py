"""Which scope each call needs: the one table that access control and OpenAPI read."""

from collections.abc import Mapping
from typing import Final

from service.api.http.front import API
from service.domain.scopes import Scope

SCOPE_OF: Final[Mapping[tuple[str, str], Scope]] = {
    ("GET", f"{API}/users/me"): Scope.PROFILE,
    ("DELETE", f"{API}/users/me"): Scope.PROFILE,
    ("GET", f"{API}/users/me/activity"): Scope.PROFILE,
    ("GET", f"{API}/users/me/enrichment"): Scope.PROFILE,
    ("GET", f"{API}/users/me/identities"): Scope.PROFILE,
    ("DELETE", f"{API}/users/me/identities/{{identity_id}}"): Scope.PROFILE,
    ("POST", f"{API}/auth/email/change"): Scope.PROFILE,
    ("GET", f"{API}/email-verification/{{email}}"): Scope.PROFILE,
    ("POST", f"{API}/auth/logout"): Scope.PROFILE,
    ("POST", f"{API}/auth/password/change"): Scope.PROFILE,
    ("GET", f"{API}/auth/sessions"): Scope.PROFILE,
    ("DELETE", f"{API}/auth/sessions"): Scope.PROFILE,
    ("DELETE", f"{API}/auth/sessions/{{session_id}}"): Scope.PROFILE,
    ("GET", f"{API}/referral-code"): Scope.CODES_READ,
    ("POST", f"{API}/referral-code"): Scope.CODES_WRITE,
    ("PUT", f"{API}/referral-code"): Scope.CODES_WRITE,
    ("PATCH", f"{API}/referral-code"): Scope.CODES_WRITE,
    ("DELETE", f"{API}/referral-code"): Scope.CODES_WRITE,
    ("GET", f"{API}/referral-codes"): Scope.CODES_READ,
    ("GET", f"{API}/referrals/{{referrer_id}}"): Scope.REFERRALS_READ,
    ("GET", f"{API}/admin/users"): Scope.ADMIN,
    ("GET", f"{API}/admin/users/{{user_id}}"): Scope.ADMIN,
    ("GET", f"{API}/admin/users/{{user_id}}/enrichment"): Scope.ADMIN,
    ("PATCH", f"{API}/admin/users/{{user_id}}"): Scope.ADMIN,
    ("DELETE", f"{API}/admin/users/{{user_id}}"): Scope.ADMIN,
}

ENDING_SESSIONS: Final = frozenset(
    {
        ("POST", f"{API}/auth/logout"),
        ("DELETE", f"{API}/auth/sessions"),
        ("DELETE", f"{API}/auth/sessions/{{session_id}}"),
    }
)
"""Never rate limited: this is how the owner gets rid of a thief who uses up the limit."""


def is_counted_write(method: str, path: str) -> bool:
    """Whether RATE_LIMIT_WRITE counts this call of a signed-in user."""
    return method != "GET" and (method, path) not in ENDING_SESSIONS
