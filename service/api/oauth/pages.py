"""The pages on which a user signs in and grants access, or sets a new password, and the refusal.

No script, readable on a phone and in the dark; the templates escape every text from outside.
"""

import secrets
from typing import Any

from aiohttp import web

from service.api.http.pages import render
from service.api.http.problem_types import status_of
from service.domain.errors import ServiceError


def show_page(
    template: str,
    *,
    form_action: str,
    fault: ServiceError | None = None,
    status: int = 200,
    **shown: Any,
) -> web.Response:
    """Return a page; a `fault` is shown on it, and gives it a status.

    `form_action` is where its forms may go, as a content security policy has it.
    """
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; form-action {form_action}; "
        "frame-ancestors 'none'; base-uri 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
    if fault:
        status, shown["fault"] = status_of(type(fault)), fault.detail
        if fault.wait is not None:
            headers["Retry-After"] = str(fault.wait)
    # The service's header "no-referrer" would make browsers hide the origin of a form as well:
    # page.html overrides it.
    text = render(template, nonce=nonce, **{"fault": "", **shown})
    return web.Response(text=text, status=status, content_type="text/html", headers=headers)


def show_refusal(description: str, status: int = 400) -> web.Response:
    """Return the page for a request that must not be sent back to the client it names."""
    return show_page("refusal.html", form_action="'none'", status=status, description=description)
