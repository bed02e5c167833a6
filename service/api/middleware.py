"""The one middleware: what every request gets, whatever its handler does.

One rather than one for each matter, because each costs every request, and because the order in
which a request id, a problem, a header and a log line come about can be read here from top to
bottom.
"""

import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Final

from aiohttp import web
from aiohttp.hdrs import METH_ALL
from marshmallow import ValidationError

from service.api.headers import add_headers_of_every_answer
from service.api.keys import REQUEST_ID, SETTINGS, USER_ID, WINDOWS
from service.api.problems import oauth_error_of, problem_of
from service.api.requests import is_https
from service.domain.errors import ServiceError
from service.domain.oauth import OAuthError
from service.metrics import REQUEST_SECONDS
from service.rate_limits import Window

API: Final = "/api/v1"

access_log = logging.getLogger("service.access")
log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ZERO_WEIGHT: Final = re.compile(r"q=0(\.0*)?")
_MEDIA_RANGES: Final = ("application/json", "application/*", "*/*")
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, X-Request-Id",
    "Access-Control-Max-Age": "600",
}
_EXPOSED: Final = (
    "Allow, Idempotency-Replayed, RateLimit, RateLimit-Policy, Retry-After, "
    "WWW-Authenticate, X-Request-Id"
)


@web.middleware
async def around_every_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, and its answer a shape, headers, a measurement and a log line."""
    started = perf_counter()
    sent_id = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = sent_id if _REQUEST_ID.fullmatch(sent_id) else secrets.token_hex(16)
    resource = request.match_info.route.resource
    # The route and not the path: a path holds e-mails.
    about = {
        "request_id": request[REQUEST_ID],
        "method": request.method if request.method in METH_ALL else "other",
        "route": resource.canonical if resource else "none",
    }
    response: web.StreamResponse
    try:
        response = _preflight(request) or await _answer(request, handler)
    except (ServiceError, OAuthError, ValidationError, web.HTTPException) as error:
        response = _told(error, request)
    except Exception as error:
        log.exception("unhandled error", extra=about)
        response = _told(error, request)
    _add_headers(request, response)
    seconds = perf_counter() - started
    REQUEST_SECONDS.labels(about["method"], about["route"], response.status).observe(seconds)
    access_log.info(
        "request",
        extra={
            **about,
            "status": response.status,
            "duration_ms": round(seconds * 1000, 2),
            "user_id": request.get(USER_ID),
        },
    )
    return response


def _told(error: Exception, request: web.Request) -> web.Response:
    of_oauth = request.path.startswith("/oauth/")
    return oauth_error_of(error, request) if of_oauth else problem_of(error, request)


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.path.startswith(API) and not _accepts_json(request.headers.get("Accept", "*/*")):
        raise web.HTTPNotAcceptable
    return await handler(request)


def _accepts_json(accept: str) -> bool:
    """Whether the Accept header leaves JSON (RFC 9110, 12.5.1)."""
    accepted = {}
    for media_range in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in media_range.split(";"))
        accepted[media_type] = not any(map(_ZERO_WEIGHT.fullmatch, parameters))
    # The nearest range decides.
    return next((accepted[name] for name in _MEDIA_RANGES if name in accepted), False)


def _allowed_origin(request: web.Request) -> str | None:
    if request.path == "/oauth/authorize":
        return None  # for browsers to open, not for scripts to read (RFC 9700, 2.6)
    origin = request.headers.get("Origin")
    allowed = request.app[SETTINGS].cors_origins
    return origin if origin is not None and (origin in allowed or "*" in allowed) else None


def _preflight(request: web.Request) -> web.Response | None:
    """Return the answer to a CORS preflight of an allowed origin (Fetch, 3.2.2), else None."""
    asked = "Access-Control-Request-Method" in request.headers
    if request.method != "OPTIONS" or not asked or _allowed_origin(request) is None:
        return None
    return web.Response(status=204, headers=_PREFLIGHT)


def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    headers = response.headers
    add_headers_of_every_answer(headers, request[REQUEST_ID])
    if is_https(request):
        headers["Strict-Transport-Security"] = "max-age=63072000"
    if request.app[SETTINGS].cors_origins:
        headers.add("Vary", "Origin")
    if origin := _allowed_origin(request):
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = _EXPOSED
    if windows := request.get(WINDOWS):
        headers.update(_rate_limit_headers(windows))


def _rate_limit_headers(windows: list[Window]) -> dict[str, str]:
    """draft-ietf-httpapi-ratelimit-headers-10."""
    return {
        "RateLimit-Policy": ", ".join(
            f'"{window.name}";q={window.limit.requests};w={window.limit.seconds}'
            for window in windows
        ),
        "RateLimit": ", ".join(
            f'"{window.name}";r={window.remaining};t={window.reset}' for window in windows
        ),
    }
