"""What a browser adds to a request: cookies, and where a form comes from."""

import re
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from service.api.http.app_keys import SETTINGS
from service.api.http.requests import is_https

_VALUE: Final = re.compile(r"[A-Za-z0-9._-]+")


def read_cookie(request: web.Request, name: str) -> str | None:
    """Return one of our cookies; None unless it is there exactly once, in our own format.

    Parsed strictly (RFC 6265, 4.2.1): the standard library also ends a cookie at a space, and would
    take part of the value of another cookie, which any subdomain may set, for ours.
    """
    sent = ";".join(request.headers.getall("Cookie", ()))
    pairs = [pair.removeprefix(" ").partition("=") for pair in sent.split(";")]
    values = [value for other, _, value in pairs if other == name]
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
    return is_https(request) or urlsplit(origin).netloc != request.host
