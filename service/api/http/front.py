"""The front: what every request gets, whatever its handler does.

It is the server's request handler, in the place of aiohttp's application, whose middlewares and
router would cost every request as much as half a look-up. The order in which a request id, a
problem, a header and a log line come about can be read here from top to bottom.
"""

import itertools
import logging
import re
import secrets
from time import perf_counter, time
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.hdrs import EXPECT, METH_ALL
from marshmallow import ValidationError
from multidict import istr

from service.api.http import app_keys
from service.api.http.accept import check_accepts_json
from service.api.http.app_keys import CONTEXT, SERVICES, SETTINGS, Context
from service.api.http.cors import Cors
from service.api.http.headers import Headers
from service.api.http.origin import CURRENT_REQUEST
from service.api.http.problems import oauth_error_of, problem_of
from service.api.http.route_table import RouteTable
from service.domain.errors import Overloaded, ServiceError
from service.domain.oauth import OAuthError

API: Final = "/api/v1"

log = logging.getLogger(__name__)

_X_REQUEST_ID: Final = istr("X-Request-Id")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_FORESEEN: Final = (ServiceError, OAuthError, ValidationError, web.HTTPException)


class Front:
    """Answers the requests to an application."""

    def __init__(self, app: web.Application) -> None:
        assert not app.middlewares, "the front would skip them"
        assert not app.on_response_prepare, "a PrebuiltResponse would skip them"
        settings = app[SETTINGS]
        self._app = app
        self._routes = RouteTable(app.router)
        self._stopping = app[app_keys.STOPPING]
        self._load_shedder = app[app_keys.LOAD_SHEDDER]
        self._cors = Cors(settings.cors_origins) if settings.cors_origins else None
        self._headers = Headers(https=settings.is_https)
        self._access_log = app[app_keys.ACCESS_LOG]
        self._process = secrets.token_hex(10)
        self._numbers = itertools.count(1)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Return the answer to a request."""
        started = perf_counter()
        request_id = request.headers.get(_X_REQUEST_ID)
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = f"{self._process}{next(self._numbers):012x}"
        request[CONTEXT] = context = Context(request_id)
        CURRENT_REQUEST.set(request)
        match = self._routes.find(request)
        if match is None:
            match = await self._app.router.resolve(request)
        match.add_app(self._app)
        request._match_info = match  # noqa: SLF001  # as the application would
        if EXPECT in request.headers:
            await _answer_expectation(request)
        # The template and not the path, which may hold an email address. Without a route the
        # answer is a problem, whatever the client accepts.
        route = match.route
        template, has_json = self._routes.about.get(route, ("", False))
        path = template or request.path
        method = request.method if request.method in METH_ALL else "other"
        self._load_shedder.begin()
        try:
            of_api = template.startswith(API)
            if of_api and (self._load_shedder.share or method not in _READS):
                self._check_has_time(method)
            preflight = self._cors.preflight(request) if self._cors else None
            if of_api and has_json:
                check_accepts_json(request)
            response = preflight or await route.handler(request)
        except Exception as error:
            if not isinstance(error, _FORESEEN):
                about = {"request_id": request_id, "method": method, "route": template or "none"}
                log.exception("unhandled error", extra=about)
            response = _explain(error, request, path)
        finally:
            self._load_shedder.under_way -= 1
        if self._stopping.is_set():
            response.force_close()  # the client's next connection is then to another process
        if self._cors:
            self._cors.add_headers(request, response.headers)
        self._headers.add(request, response, context)
        status, seconds, user_id = response.status, perf_counter() - started, context.user_id
        about_it = time(), request_id, method, template or "none", status, seconds, user_id
        self._access_log.add(about_it)
        return response

    def _check_has_time(self, method: str) -> None:
        """Raise Overloaded before the token and the body are read, which take time too."""
        self._load_shedder.check()
        if method not in _READS:  # it will need PostgreSQL
            self._app[SERVICES].database.check_queue()


def _explain(error: Exception, request: web.Request, path: str) -> web.Response:
    of_oauth = path.startswith("/oauth/")
    response = oauth_error_of(error, request) if of_oauth else problem_of(error, request)
    if isinstance(error, Overloaded):
        response.force_close()  # or as many would come again at once
    return response


async def _answer_expectation(request: web.Request) -> None:
    """Answer `Expect: 100-continue`; other expectations are ignored (RFC 9110, 10.1.1)."""
    if request.headers[EXPECT].lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
