"""What a browser adds to a request: cookies, and where a form comes from."""

import re
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from service.api.http.app_keys import SETTINGS
from service.api.http.requests import public_path

_VALUE: Final = re.compile(r"[A-Za-z0-9._-]+")


def cookie_name(request: web.Request, name: str) -> str:
    """Return the full name of one of our cookies.

    The prefix makes browsers refuse a cookie that another host or path has set (RFC 6265bis).
    """
    return f"__Host-{name}" if request.app[SETTINGS].is_https else name


def set_cookie(
    request: web.Request,
    response: web.Response,
    name: str,
    value: str,
    max_age: timedelta | None = None,
) -> None:
    """Have the browser keep a cookie, for as long as it runs unless `max_age` is given."""
    response.set_cookie(
        cookie_name(request, name),
        value,
        max_age=None if max_age is None else int(max_age.total_seconds()),
        path=_path(request),
        httponly=True,
        samesite="Lax",  # it has to come along when an issuer's site sends the browser back
        secure=request.app[SETTINGS].is_https,
    )


def delete_cookie(request: web.Request, response: web.Response, name: str) -> None:
    """Have the browser drop a cookie, if it has sent it."""
    if cookie_name(request, name) in request.cookies:
        response.del_cookie(
            cookie_name(request, name),
            path=_path(request),
            secure=request.app[SETTINGS].is_https,
            httponly=True,
        )


def _path(request: web.Request) -> str:
    # The prefix __Host- requires the path /.
    return "/" if request.app[SETTINGS].is_https else public_path(request, "") or "/"


def read_cookie(request: web.Request, name: str) -> str | None:
    """Return one of our cookies; None unless it is there exactly once, in the form we gave it.

    Parsed strictly (RFC 6265, 4.2.1): the standard library also ends a cookie at a space, and so
    would take part of another one's value, which any subdomain may set, for ours.
    """
    sent = ";".join(request.headers.getall("Cookie", ()))
    pairs = [pair.removeprefix(" ").partition("=") for pair in sent.split(";")]
    values = [value for other, _, value in pairs if other == cookie_name(request, name)]
    return values[0] if len(values) == 1 and _VALUE.fullmatch(values[0]) else None


def is_from_elsewhere(request: web.Request) -> bool:
    """Whether a browser reports that another origin's page has sent the form.

    A client that sends neither header is not a current browser, and is judged by its cookie alone.
    """
    site = ", ".join(request.headers.getall("Sec-Fetch-Site", ()))
    if site:
        return site not in {"same-origin", "none"}
    origin = ", ".join(request.headers.getall("Origin", ()))
    own = urlsplit(request.app[SETTINGS].public_url)
    if not origin or origin == f"{own.scheme}://{own.netloc}":
        return False
    # In development the service has several names. With https it has one: a page loaded without TLS
    # is not ours, whatever its host. "null" is the origin of a frame that hides where it is from.
    return request.app[SETTINGS].is_https or origin.partition("://")[2] != request.host
