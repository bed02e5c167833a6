"""Running an application behind its front, also for requests that aiohttp cannot parse."""

import logging
import secrets
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from service.api.http.app_keys import SETTINGS, Context
from service.api.http.front import Front
from service.api.http.headers import Headers
from service.api.http.problem_types import BadRequest, HeadersTooLarge, InternalError, UriTooLong
from service.api.http.problems import problem
from service.domain.errors import ServiceError

log = logging.getLogger(__name__)

PARSER_LIMITS: Final = {"max_line_size": 8190, "max_field_size": 8192}
"""Of aiohttp's parser, in bytes: they differ because an error names only the limit it broke."""


class _Connection(RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the problem that aiohttp would report in plain text, and close the connection."""
        request_id = secrets.token_hex(16)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("unhandled error", exc_info=exc, extra={"request_id": request_id})
        else:
            log.info("unreadable request: %s", type(exc).__name__, extra={"request_id": request_id})
        response = problem(_error_of(status, exc), request_id)
        # All that a connection knows of its application is the method that makes its requests.
        app = getattr(self._request_factory, "__self__", None)
        https = isinstance(app, web.Application) and app[SETTINGS].is_https
        response.force_close()
        Headers(https=https).add(request, response, Context(request_id))
        return response


def _error_of(status: int, error: BaseException | None) -> ServiceError:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return InternalError()
    if not isinstance(error, LineTooLong):
        return BadRequest()
    _, limit, _ = error.args
    return UriTooLong() if limit == PARSER_LIMITS["max_line_size"] else HeadersTooLarge()


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application behind its front."""

    __slots__ = ()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # aiohttp has no parameter for it
        server.request_handler = Front(self.app).handle  # type: ignore[assignment]
        return server
