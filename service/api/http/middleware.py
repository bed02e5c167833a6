"""The one middleware: what every request gets, whatever its handler does.

One rather than one for each matter, because each costs every request, and because the order in
which a request id, a problem, a header and a log line come about can be read here from top to
bottom.
"""

import asyncio
import itertools
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter, time
from typing import Final

from aiohttp import web
from aiohttp.hdrs import METH_ALL
from aiohttp.typedefs import Middleware
from marshmallow import ValidationError
from multidict import istr

from service.api.http.accept import answers_with_json, check_accepts_json
from service.api.http.app_keys import CONTEXT, SERVICES, Context
from service.api.http.cors import Cors
from service.api.http.headers import add_headers_of_every_answer, lines_of_every_answer
from service.api.http.load_shedding import LoadShedder
from service.api.http.origin import CURRENT_REQUEST
from service.api.http.problems import oauth_error_of, problem_of
from service.api.http.responses import PrebuiltResponse
from service.domain.errors import Overloaded, ServiceError
from service.domain.oauth import OAuthError
from service.redis.rate_limits import Window
from service.settings.settings import Settings
from service.telemetry.access_log import AccessLog

API: Final = "/api/v1"

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_X_REQUEST_ID: Final = istr("X-Request-Id")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def around_every_request(
    settings: Settings, access_log: AccessLog, stopping: asyncio.Event, load_shedder: LoadShedder
) -> Middleware:
    """Return the middleware of an application.

    It gives each request an id, and its answer a shape, headers, a measurement and a log line.
    """
    process = secrets.token_hex(10)
    numbers = itertools.count(1)
    known: dict[web.AbstractRoute, tuple[str, bool]] = {}
    https = settings.public_url.startswith("https:")
    lines = lines_of_every_answer(https=https)
    cors = Cors(settings.cors_origins)
    has_origins = bool(cors)

    @web.middleware
    async def surround(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = perf_counter()
        request_id = request.headers.get(_X_REQUEST_ID)
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = f"{process}{next(numbers):012x}"
        request[CONTEXT] = context = Context(request_id)
        CURRENT_REQUEST.set(request)
        route = request.match_info.route
        # The template and not the path: a path holds e-mails.
        about_route = known.get(route)
        if about_route is None and route.resource is not None:
            about_route = route.resource.canonical, answers_with_json(route.handler)
            known[route] = about_route
        # Without a route the answer is a problem, whatever the client accepts.
        template, has_json = about_route or (None, False)
        path = template or request.path
        method = request.method if request.method in METH_ALL else "other"
        response: web.StreamResponse
        load_shedder.begin()
        try:
            of_api = path.startswith(API)
            if of_api and (load_shedder.share or method not in _READS):
                _check_has_time(request, load_shedder)
            preflight = cors.preflight(request) if has_origins else None
            if of_api and has_json:
                check_accepts_json(request)
            response = preflight or await handler(request)
        except (ServiceError, OAuthError, ValidationError, web.HTTPException) as error:
            response = _told(error, request, path)
            if isinstance(error, Overloaded):
                response.force_close()  # or as many would come again at once
        except Exception as error:
            told = {"request_id": request_id, "method": method, "route": template or "none"}
            log.exception("unhandled error", extra=told)
            response = _told(error, request, path)
        finally:
            load_shedder.under_way -= 1
        if (
            has_origins
            or stopping.is_set()  # then the head has one more line
            or type(response) is not PrebuiltResponse
            or not response.set_head(request, f"{lines}{_lines(context)}")
        ):
            _add_headers(request, response, cors, https=https)
        seconds = perf_counter() - started
        about = method, template or "none", response.status, seconds
        access_log.add((time(), request_id, *about, context.user_id))
        return response

    return surround


def _told(error: Exception, request: web.Request, path: str) -> web.Response:
    of_oauth = path.startswith("/oauth/")
    return oauth_error_of(error, request) if of_oauth else problem_of(error, request)


def _check_has_time(request: web.Request, load_shedder: LoadShedder) -> None:
    """Raise Overloaded before the token and the body are read, which take time too."""
    load_shedder.check()
    if request.method not in _READS:  # it will need PostgreSQL
        request.app[SERVICES].database.check_queue()


def _add_headers(
    request: web.Request, response: web.StreamResponse, cors: Cors, *, https: bool
) -> None:
    context, headers = request[CONTEXT], response.headers
    add_headers_of_every_answer(headers, context.request_id, https=https)
    if context.windows:
        headers["RateLimit-Policy"], headers["RateLimit"] = _rate_limit(context.windows)
    if cors:
        cors.add_headers(request, headers)


def _lines(context: Context) -> str:
    """Return the headers of this one answer, as they are sent."""
    if not context.windows:
        return f"X-Request-Id: {context.request_id}\r\n"
    policy, state = _rate_limit(context.windows)
    return (
        f"X-Request-Id: {context.request_id}\r\n"
        f"RateLimit-Policy: {policy}\r\nRateLimit: {state}\r\n"
    )


def _rate_limit(windows: Sequence[Window]) -> tuple[str, str]:
    """Return RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-10)."""
    policies = states = ""
    for window in windows:
        limit = window.limit
        comma = ", " if policies else ""
        policies += f'{comma}"{window.name}";q={limit.requests};w={limit.seconds}'
        states += f'{comma}"{window.name}";r={window.remaining};t={window.reset}'
    return policies, states
