"""Which scripts of other origins may call the API, and with what (Fetch, 3.2)."""

import re
from collections.abc import Iterator
from typing import Final

from aiohttp import web
from multidict import CIMultiDict

from service.api.mailbox import PATH as MAILBOX

# Opened in browsers; pages of other origins must not read them (RFC 9700, 2.6).
_NOT_FOR_SCRIPTS: Final = frozenset({"/oauth/authorize", "/oauth/forgot-password", MAILBOX})
_METHODS: Final = "GET, POST, PUT, PATCH, DELETE"
_HEADERS: Final = ("Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id")
_EXPOSED: Final = (
    "Allow, Idempotency-Replayed, Location, RateLimit, RateLimit-Policy, Retry-After, "
    "WWW-Authenticate, X-Request-Id"
)
_ASKED: Final = "Access-Control-Request-Headers"
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
MOST_HEADERS: Final = 50
"""How many more headers a preflight may ask for; tracing asks for a handful."""


class Cors:
    """The answers to scripts of these origins; `https://*.example.com` is all subdomains."""

    def __init__(self, origins: frozenset[str]) -> None:
        self._all = "*" in origins
        self._exact = origins
        wild = [re.escape(origin) for origin in origins - {"*"} if "*" in origin]
        pattern = "|".join(wild).replace(r"\*", r"(?:[a-z0-9_-]+\.)*[a-z0-9_-]+")
        self._wild = re.compile(pattern) if wild else None

    def allowed_origin(self, request: web.Request) -> str | None:
        """Return the origin of the script, if it is an allowed one."""
        if request.path in _NOT_FOR_SCRIPTS:
            return None
        origin = request.headers.get("Origin")
        if origin is None:
            return None
        allowed = self._all or origin in self._exact
        return origin if allowed or (self._wild and self._wild.fullmatch(origin)) else None

    def preflight(self, request: web.Request) -> web.Response | None:
        """Return the answer to a preflight of an allowed origin (Fetch, 3.2.2), otherwise None."""
        asked = "Access-Control-Request-Method" in request.headers
        if request.method != "OPTIONS" or not asked or self.allowed_origin(request) is None:
            return None
        headers = {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": ", ".join([*_HEADERS, *_others_asked_for(request)]),
            "Access-Control-Max-Age": "600",
            "Vary": f"Access-Control-Request-Method, {_ASKED}",
        }
        return web.Response(status=204, headers=headers)

    def add_headers(self, request: web.Request, headers: CIMultiDict[str]) -> None:
        """Tell the browser whether the script may read the answer."""
        headers.add("Vary", "Origin")
        if origin := self.allowed_origin(request):
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = _EXPOSED


def _others_asked_for(request: web.Request) -> Iterator[str]:
    """Yield the headers that a preflight asks for besides the service's own, if all are valid.

    No header is dangerous here: the service reads no others, and scripts send no cookies to it.
    """
    names = [name.strip() for name in ",".join(request.headers.getall(_ASKED, ())).split(",")]
    others = {name.lower(): name for name in names if name}
    for own in _HEADERS:
        others.pop(own.lower(), None)
    if len(others) <= MOST_HEADERS and all(map(_TOKEN.fullmatch, others)):
        yield from others.values()
