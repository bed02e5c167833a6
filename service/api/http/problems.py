"""Every error answer: one table from kinds to statuses, and one shape (RFC 9457)."""

import functools
import json
import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler
from aiohttp_apispec import docs
from marshmallow import ValidationError

from service.api.http.app_keys import CONTEXT, SETTINGS, Context
from service.api.http.headers import Headers
from service.api.http.pages import render
from service.api.http.prebuilt import PrebuiltResponse
from service.api.http.requests import InvalidBody, escape_pointer
from service.api.http.responses import to_json
from service.domain.errors import (
    Conflict,
    InsufficientScope,
    InvalidInput,
    InvalidToken,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    ServiceError,
    TooMany,
    Unavailable,
)
from service.domain.oauth import OAuthError

log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "application/problem+json"
LONGEST_POINTER: Final = 80
"""Of a member that the client has named itself, in a sentence."""
PARSER_LIMITS: Final = {"max_line_size": 8190, "max_field_size": 8192}
"""Of aiohttp's parser, in bytes: two, because an error tells by its limit what was too long."""

STATUS_OF_KIND: Final[Mapping[type[ServiceError], HTTPStatus]] = {
    InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotAuthenticated: HTTPStatus.UNAUTHORIZED,
    NotAllowed: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    TooMany: HTTPStatus.TOO_MANY_REQUESTS,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True, eq=False)
class ProblemType:
    """What every problem of one code has in common."""

    status: HTTPStatus
    code: str
    title: str
    remedy: str


INTERNAL_ERROR: Final = ProblemType(
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "internal-error",
    "The service failed. The failure is logged.",
    "Tell the operators the `request_id`.",
)
BAD_REQUEST: Final = ProblemType(
    HTTPStatus.BAD_REQUEST,
    "bad-request",
    "The request cannot be read.",
    "Mend what `detail` names. A body is a JSON document in UTF-8.",
)
URI_TOO_LONG: Final = ProblemType(
    HTTPStatus.REQUEST_URI_TOO_LONG,
    "uri-too-long",
    "The address is longer than 8 kB.",
    "Send less in the path and the query.",
)
HEADERS_TOO_LARGE: Final = ProblemType(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "headers-too-large",
    "A header is larger than 8 kB.",
    "Send smaller headers; in a browser, delete the cookies of this site.",
)

_OF_HTTP: Final = (
    INTERNAL_ERROR,
    BAD_REQUEST,
    ProblemType(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "This address does not know the method.",
        "Use one of the methods that `Allow` lists.",
    ),
    ProblemType(
        HTTPStatus.NOT_ACCEPTABLE,
        "not-acceptable",
        "The answer would be JSON, which `Accept` excludes.",
        "Send `Accept: application/json`, or none.",
    ),
    ProblemType(
        HTTPStatus.REQUEST_TIMEOUT,
        "request-timeout",
        "The request did not arrive in time.",
        "Send it again, faster.",
    ),
    ProblemType(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body-too-large",
        "The body is larger than 16 KiB.",
        "Send a smaller one.",
    ),
    URI_TOO_LONG,
    HEADERS_TOO_LARGE,
    ProblemType(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "unsupported-media-type",
        "The body is not application/json in UTF-8.",
        "Send `Content-Type: application/json`.",
    ),
)


def status_of(error: type[ServiceError]) -> HTTPStatus:
    """Return the status of the nearest kind that `error` descends from."""
    for ancestor in error.__mro__:
        if ancestor in STATUS_OF_KIND:
            return STATUS_OF_KIND[ancestor]
    raise LookupError(f"{error.__name__} is of no kind listed in STATUS_OF_KIND")


_problem_types: Final[dict[type[ServiceError], ProblemType]] = {}


def problem_type_of(error: type[ServiceError]) -> ProblemType:
    """Return what all problems of this error have in common."""
    known = _problem_types.get(error)
    if known is None:
        known = ProblemType(status_of(error), error.code, error.title, error.remedy)
        _problem_types[error] = known
    return known


def _descendants(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for child in error.__subclasses__():
        yield child
        yield from _descendants(child)


# A leaf without a code of its own shares its kind's, which comes first and explains it.
PROBLEM_TYPES: Final[Mapping[str, ProblemType]] = {
    problem_type.code: problem_type
    for problem_type in reversed([*map(problem_type_of, _descendants(ServiceError)), *_OF_HTTP])
}
_OAUTH_CODE_OF_STATUS: Final = {
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "temporarily_unavailable",
    HTTPStatus.TOO_MANY_REQUESTS: "temporarily_unavailable",
}
_BY_STATUS: Final[Mapping[int, ProblemType]] = {
    problem_type.status: problem_type for problem_type in (*_OF_HTTP, problem_type_of(NotFound))
}


def problem(
    problem_type: ProblemType,
    detail: str,
    request_id: str,
    *,
    errors: Iterable[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
    **extensions: Any,
) -> web.Response:
    """Return the answer; `errors` are JSON pointers with what is wrong there."""
    if members := [{"pointer": pointer, "detail": text} for pointer, text in errors]:
        extensions["errors"] = members
    if extensions:
        body = to_json({**_members(problem_type, detail, request_id), **extensions})
    else:
        body = request_id.encode().join(_around_request_id(problem_type, detail))
    response = PrebuiltResponse(body, CONTENT_TYPE, problem_type.status)
    if headers:
        response.headers.update(headers)
    return response


@functools.lru_cache(256)
def _around_request_id(problem_type: ProblemType, detail: str) -> list[bytes]:
    """Return what stands before and after the request's id, which needs no escapes.

    Most look-ups by strangers end here, and encoding it each time takes a tenth of one.
    """
    placeholder = "request-id"
    return to_json(_members(problem_type, detail, placeholder)).rsplit(placeholder.encode(), 1)


def _members(problem_type: ProblemType, detail: str, request_id: str) -> dict[str, Any]:
    return {
        "type": f"/problems/{problem_type.code}",
        "title": problem_type.title,
        "status": problem_type.status,
        "code": problem_type.code,
        "detail": detail,
        "request_id": request_id,
    }


def problem_of(error: Exception, request: web.Request) -> web.Response:
    """Return the answer to a request that ended with `error`."""
    request_id = request[CONTEXT].request_id
    match error:
        case ServiceError():
            return _of_service_error(error, request_id)
        case ValidationError():
            errors = list(_flatten(error.normalized_messages()))  # type: ignore[no-untyped-call]
            if isinstance(error, InvalidBody):
                errors += error.further
            return problem(
                problem_type_of(InvalidInput), summary_of(errors), request_id, errors=errors
            )
        case web.HTTPException():
            problem_type = _BY_STATUS.get(error.status, BAD_REQUEST)
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            # The reason is ours where a handler gave one, else HTTP's phrase, which says nothing.
            ours = error.reason != HTTPStatus(error.status).phrase
            return problem(
                problem_type,
                error.reason if ours else problem_type.title,
                request_id,
                headers=headers,
            )
        case _:
            return problem(INTERNAL_ERROR, INTERNAL_ERROR.title, request_id)


def oauth_error_of(error: Exception, request: web.Request) -> web.Response:
    """Return the answer to a failed request under /oauth, in the words of RFC 6749, 5.2."""
    if isinstance(error, OAuthError):
        unauthorized = error.code == "invalid_client"
        status = HTTPStatus.UNAUTHORIZED if unauthorized else HTTPStatus.BAD_REQUEST
        headers = {"WWW-Authenticate": "Basic"} if unauthorized else {}
        code, description = error.code, error.description
    else:
        told = problem_of(error, request)
        status = HTTPStatus(told.status)
        kept = ("Allow", "Retry-After")
        headers = {name: told.headers[name] for name in kept if name in told.headers}
        description = json.loads(told.text or "")["detail"]
        code = _OAUTH_CODE_OF_STATUS.get(status, "invalid_request")
    return web.Response(
        status=status,
        body=to_json({"error": code, "error_description": description}),
        content_type="application/json",
        headers={**headers, "Cache-Control": "no-store", "Pragma": "no-cache"},
    )


def _of_service_error(error: ServiceError, request_id: str) -> web.Response:
    headers = {}
    if isinstance(error, InsufficientScope):
        headers["WWW-Authenticate"] = f'Bearer error="insufficient_scope", scope="{error.scope}"'
    if isinstance(error, NotAuthenticated):
        sent = isinstance(error, InvalidToken)
        headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if sent else "Bearer"
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return problem(
        problem_type_of(type(error)),
        error.detail,
        request_id,
        errors=[(error.pointer, error.detail)] if error.pointer else (),
        headers=headers,
    )


def _flatten(messages: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield JSON pointers (RFC 6901) with each message that marshmallow has."""
    for member, found in messages.items():
        pointer = "#" if member == "_schema" else f"#/{escape_pointer(member)}"
        for message in found if isinstance(found, list) else [str(found)]:
            yield pointer, message


def summary_of(errors: Sequence[tuple[str, str]]) -> str:
    """Return the first error in words: who reads on finds all of them in `errors`."""
    pointer, text = errors[0]
    others = f" ({len(errors) - 1} more in `errors`.)" if len(errors) > 1 else ""
    return f"{pointer[:LONGEST_POINTER]}: {text}{others}"


def answer_unreadable(
    connection: RequestHandler,
    request: web.BaseRequest,
    status: int = 500,
    exc: BaseException | None = None,
    message: str | None = None,
) -> web.StreamResponse:
    """Answer what is not HTTP, or fails outside the front, and close the connection.

    Takes the place of RequestHandler.handle_error, which answers in plain text.
    """
    request_id = secrets.token_hex(16)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("unhandled error", exc_info=exc, extra={"request_id": request_id})
        problem_type = INTERNAL_ERROR
    else:
        log.info("unreadable request: %s", type(exc).__name__, extra={"request_id": request_id})
        problem_type = _problem_type_of_unreadable(exc)
    response = problem(problem_type, problem_type.title, request_id)
    # What a connection knows of its application is the method that makes its requests.
    app = getattr(connection._request_factory, "__self__", None)  # noqa: SLF001
    https = isinstance(app, web.Application) and app[SETTINGS].public_url.startswith("https:")
    response.force_close()
    Headers(https=https).add(request, response, Context(request_id))
    return response


def _problem_type_of_unreadable(error: BaseException | None) -> ProblemType:
    if not isinstance(error, LineTooLong):
        return BAD_REQUEST
    _, limit, _ = error.args
    return URI_TOO_LONG if limit == PARSER_LIMITS["max_line_size"] else HEADERS_TOO_LARGE


# aiohttp lets nobody say how it answers what it cannot parse.
RequestHandler.handle_error = answer_unreadable  # type: ignore[assignment,method-assign]


@docs(
    tags=["Reference"],
    summary="What a problem means",
    responses={
        200: {
            "description": "A page for people, with what to do about it.",
            "content": {"text/html": {"schema": {"type": "string"}}},
        }
    },
)
async def explain_problem(request: web.Request) -> web.Response:
    """GET /problems/{code}: what a problem's `type` leads to, for people."""
    problem_type = PROBLEM_TYPES.get(request.match_info["code"])
    if problem_type is None:
        raise web.HTTPNotFound(reason="There is no problem of this code.")
    return web.Response(text=render("problem.html", problem=problem_type), content_type="text/html")
