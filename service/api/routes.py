"""Every address of the service and its handler, within a section of the docs in reading order."""

from typing import Final

from aiohttp import web

from service.api import (
    account_changes,
    admin,
    email_verification,
    enrichment,
    forgotten_password,
    health,
    identities,
    identity_providers,
    mail_tokens,
    referral_codes,
    referrals,
    security_events,
    sessions,
    users,
)
from service.api.docs import pages
from service.api.docs.openapi import show_openapi
from service.api.http.front import API
from service.api.http.problems import explain_problem, list_problems
from service.api.oauth import authorize, metadata, tokens

# aiohttp's own pattern excludes braces, which an email address may contain.
_EMAIL: Final = "{email:[^/]+}"
_CODE: Final = "{code:[^/]+}"

ROUTES: Final = [
    web.post(f"{API}/referral-code", referral_codes.create_referral_code),
    web.put(f"{API}/referral-code", referral_codes.replace_referral_code),
    web.get(f"{API}/referral-code", referral_codes.show_referral_code),
    web.patch(f"{API}/referral-code", referral_codes.change_referral_code),
    web.delete(f"{API}/referral-code", referral_codes.delete_referral_code),
    web.get(f"{API}/referral-codes", referral_codes.list_referral_codes),
    web.get(f"{API}/referral-code/{_EMAIL}", referral_codes.find_referral_code),
    web.get(f"{API}/codes/{_CODE}", referral_codes.check_referral_code),
    web.get(f"{API}/referrals/{{referrer_id}}", referrals.list_referrals),
    web.post(f"{API}/auth/register", users.register),
    web.get(f"{API}/users/me", users.show_me),
    web.delete(f"{API}/users/me", users.erase_me),
    web.get(f"{API}/users/me/activity", security_events.list_activity),
    web.get(f"{API}/users/me/identities", identities.list_identities),
    web.delete(f"{API}/users/me/identities/{{identity_id}}", identities.unlink_identity),
    web.post(f"{API}/auth/login", sessions.log_in),
    web.post(f"{API}/auth/refresh", sessions.refresh),
    web.post(f"{API}/auth/logout", sessions.log_out),
    web.post(f"{API}/auth/password/change", sessions.change_password),
    web.post(f"{API}/auth/password/forgot", mail_tokens.forgot_password),
    web.post(f"{API}/auth/password/reset", mail_tokens.reset_password),
    web.post(f"{API}/auth/email/confirm", mail_tokens.confirm_email),
    web.post(f"{API}/auth/email/resend", mail_tokens.resend_confirmation),
    web.post(f"{API}/auth/email/change", mail_tokens.change_email),
    web.post(f"{API}/auth/undo", account_changes.undo_change),
    web.get(f"{API}/email-verification/{_EMAIL}", email_verification.verify_email),
    web.get(f"{API}/users/me/enrichment", enrichment.show_my_enrichment),
    web.get(f"{API}/auth/sessions", sessions.list_sessions),
    web.delete(f"{API}/auth/sessions", sessions.end_other_sessions),
    web.delete(f"{API}/auth/sessions/{{session_id}}", sessions.end_session),
    web.get(f"{API}/auth/providers", identity_providers.list_providers),
    # No HEAD: it would start a sign-in, or use one up, without showing the response.
    web.get(
        f"{API}/auth/providers/{{provider}}/start",
        identity_providers.start_sign_in,
        allow_head=False,
    ),
    web.get(
        f"{API}/auth/providers/{{provider}}/callback",
        identity_providers.finish_sign_in,
        allow_head=False,
    ),
    web.get(f"{API}/admin/users", admin.list_users),
    web.get(f"{API}/admin/users/{{user_id}}", admin.show_user),
    web.patch(f"{API}/admin/users/{{user_id}}", admin.change_user),
    web.delete(f"{API}/admin/users/{{user_id}}", admin.erase_user),
    web.get(f"{API}/admin/users/{{user_id}}/enrichment", enrichment.show_enrichment),
    web.get("/oauth/authorize", authorize.show_authorization),
    web.post("/oauth/authorize", authorize.decide_authorization),
    web.get(authorize.PASSWORD_PATH, forgotten_password.show_form),
    web.post(authorize.PASSWORD_PATH, forgotten_password.submit_form),
    web.post("/oauth/token", tokens.issue_token),
    web.post("/oauth/revoke", tokens.revoke_token),
    web.post("/oauth/introspect", tokens.introspect_token),
    web.get("/.well-known/oauth-authorization-server", metadata.show_metadata),
    web.get("/.well-known/jwks.json", metadata.show_jwks),
    web.get("/health/live", health.live),
    web.get("/health/ready", health.ready),
    web.get(health.METRICS, health.metrics),
    web.get("/problems", list_problems),
    web.get("/problems/{code}", explain_problem),
    web.get("/openapi.json", show_openapi),
    *pages.DOCS_ROUTES,
]
