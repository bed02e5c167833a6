"""Which scope each call needs: the one table that access control and OpenAPI read."""

from collections.abc import Mapping
from typing import Final

from service.api.middleware import API
from service.domain.scopes import Scope

SCOPE_OF: Final[Mapping[tuple[str, str], Scope]] = {
    ("GET", f"{API}/users/me"): Scope.PROFILE,
    ("DELETE", f"{API}/users/me"): Scope.PROFILE,
    ("GET", f"{API}/users/me/enrichment"): Scope.PROFILE,
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
}
