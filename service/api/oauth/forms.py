"""Forms: those of clients, and those of the service's own pages."""

import hmac
import secrets
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import web
from marshmallow import EXCLUDE

from service.api.http.cookies import is_from_elsewhere, read_cookie, set_cookie
from service.api.http.fields import RequestSchema
from service.api.http.requests import read_bytes
from service.domain.errors import NotAllowed
from service.domain.oauth import OAuthError

_FORM: Final = "application/x-www-form-urlencoded"
_CSRF: Final = "csrf"


class OAuthRequestSchema(RequestSchema):
    """Parameters; unknown ones are ignored (RFC 6749, 3.1 and 3.2)."""

    class Meta:
        unknown = EXCLUDE


async def read_form(request: web.Request) -> dict[str, str]:
    """Return a form's parameters; raise OAuthError unless each occurs once (RFC 6749, 3.2)."""
    if request.content_type != _FORM:
        raise OAuthError("invalid_request", f"The body is not {_FORM}.")
    try:
        # Empty pairs mean nothing (https://url.spec.whatwg.org/#urlencoded-parsing).
        text = "&".join(filter(None, (await read_bytes(request)).decode().split("&")))
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict")
    except ValueError as error:
        raise OAuthError("invalid_request", "The body is not a form in UTF-8.") from error
    return _unique(pairs)


def parse_query(query: str) -> dict[str, str]:
    """Return a query's parameters; raise OAuthError unless each occurs once (RFC 6749, 3.1)."""
    return _unique(parse_qsl(query, keep_blank_values=True))


def _unique(pairs: list[tuple[str, str]]) -> dict[str, str]:
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise OAuthError("invalid_request", "A parameter occurs more than once.")
    # One without a value counts as omitted (RFC 6749, 3.1); an empty state is the client's affair.
    return {name: value for name, value in parameters.items() if value or name == "state"}


async def read_form_of_page(request: web.Request) -> dict[str, str]:
    """Return a form's parameters; raise NotAllowed unless our page sent it from this browser.

    Raises OAuthError if it cannot be read.
    """
    if is_from_elsewhere(request):
        raise NotAllowed("The form was sent by another site.")
    form = await read_form(request)
    cookie = read_cookie(request, _CSRF)
    sent = form.get("csrf", "").encode(errors="replace")
    if cookie is None or not hmac.compare_digest(cookie.encode(), sent):
        raise NotAllowed("The form did not come from this service's page.")
    return form


def csrf_of(request: web.Request) -> str:
    """Return the secret that marks this browser's forms: the one it has, or a new one."""
    return read_cookie(request, _CSRF) or secrets.token_urlsafe(32)


def keep_csrf(request: web.Request, response: web.Response, csrf: str) -> None:
    """Have the browser keep the secret of its forms."""
    set_cookie(request, response, _CSRF, csrf)
