"""What a browser sends by itself: cookies, and where a form comes from."""

import re
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from service.api.http.app_keys import SETTINGS
from service.api.http.requests import is_https

_VALUE: Final = re.compile(r"[A-Za-z0-9._-]+")


def read_cookie(request: web.Request, name: str) -> str | None:
    """Return one of our cookies; None unless it is there once, in the form that we gave it.

    Read to the letter (RFC 6265, 4.2.1): the standard library also takes a space for the end of a
    cookie, and so takes a part of the value of another one, which any subdomain may set, for ours.
    """
    sent = ";".join(request.headers.getall("Cookie", ()))
    pairs = [pair.removeprefix(" ").partition("=") for pair in sent.split(";")]
    values = [value for other, _, value in pairs if other == name]
    return values[0] if len(values) == 1 and _VALUE.fullmatch(values[0]) else None


def is_from_elsewhere(request: web.Request) -> bool:
    """Whether a browser says that another origin's page has sent the form.

    What says neither is no browser of these years, and is judged by its cookie alone.
    """
    site = ", ".join(request.headers.getall("Sec-Fetch-Site", ()))
    if site:
        return site not in {"same-origin", "none"}
    origin = ", ".join(request.headers.getall("Origin", ()))
    own = urlsplit(request.app[SETTINGS].public_url)
    if not origin or origin == f"{own.scheme}://{own.netloc}":
        return False
    # In development the service has several names. By https it has one: a page that came without
    # TLS is not ours, whatever its host is called. "null" is a frame's that hides where it is from.
    return is_https(request) or urlsplit(origin).netloc != request.host
