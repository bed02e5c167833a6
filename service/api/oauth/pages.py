"""The pages on which a user signs in and grants, or sets a new password, and the refusal.

No script, readable on a phone and in the dark; the templates escape every text from outside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from aiohttp import web

from service.api.http.pages import render
from service.domain.scopes import Scope
from service.use_cases.oauth import AuthorizationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInPage:
    """What the sign-in page shows besides the request. Its forms send `hidden` along.

    `account` is the email address of whom the page knows already, who only has to allow.
    """

    hidden: Mapping[str, str]
    fault: str = ""
    email: str = ""
    account: str | None = None
    other_account_url: str = ""
    forgotten_password_url: str | None = None
    providers: Sequence[tuple[str, str]] = field(default=())
    """Titles of other issuers, and where to sign in with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordPage:
    """What the page for a forgotten password shows: one step after the other."""

    step: Literal["ask", "reset", "done"]
    action: str
    hidden: Mapping[str, str]
    back_url: str | None
    fault: str = ""
    email: str = ""
    token: str = ""


def show_sign_in(
    service_name: str,
    request: AuthorizationRequest,
    page: SignInPage,
    *,
    action: str,
    nonce: str,
    status: int = 200,
) -> web.Response:
    """Return the page with its form, which sends the request's parameters along to `action`."""
    target = urlsplit(request.redirect_uri)
    # Browsers apply form-action to the redirect that follows the form as well.
    # A policy has no way to write an IPv6 address, or an app's own scheme with a host.
    writable = target.netloc and "[" not in target.netloc
    go_on = f"{target.scheme}://{target.netloc}" if writable else f"{target.scheme}:"
    return _page(
        "sign_in.html",
        nonce,
        f"'self' {go_on}",
        status,
        service_name=service_name,
        client_name=request.client.name,
        wishes=[scope.meaning for scope in Scope if scope in request.scopes],
        target=f"{target.scheme}://{target.netloc}",
        action=action,
        **asdict(page),
    )


def show_forgotten_password(
    service_name: str, page: PasswordPage, *, nonce: str, status: int = 200
) -> web.Response:
    """Return the page for one step of setting a new password."""
    return _page(
        "forgotten_password.html",
        nonce,
        "'self'",
        status,
        service_name=service_name,
        **asdict(page),
    )


def show_refusal(description: str, nonce: str, status: int = 400) -> web.Response:
    """Return the page for a request that must not be sent back to whom it claims to be from."""
    return _page("refusal.html", nonce, "'none'", status, description=description)


def _page(template: str, nonce: str, form_action: str, status: int, **shown: Any) -> web.Response:
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; form-action {form_action}; "
        "frame-ancestors 'none'; base-uri 'none'"
    )
    return web.Response(
        # By "no-referrer", which the header says, browsers would also hide the origin of a form:
        # page.html says otherwise.
        text=render(template, nonce=nonce, **shown),
        status=status,
        content_type="text/html",
        headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"},
    )
