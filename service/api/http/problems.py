"""Every error response, in one shape (RFC 9457)."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp_apispec import docs
from marshmallow import ValidationError

from service.api.docs.describe import in_path, page_of
from service.api.http.app_keys import CONTEXT
from service.api.http.pages import render
from service.api.http.prebuilt import PrebuiltResponse
from service.api.http.problem_types import (
    KIND_OF_STATUS,
    PROBLEM_TYPES,
    BadRequest,
    InternalError,
    status_of,
)
from service.api.http.requests import InvalidBody, escape_pointer
from service.api.http.responses import to_json
from service.domain.errors import (
    BalanceTooLow,
    InsufficientScope,
    InvalidInput,
    InvalidToken,
    NotAuthenticated,
    NotFound,
    ServiceError,
)
from service.domain.oauth import OAuthError

CONTENT_TYPE: Final = "application/problem+json"
LONGEST_POINTER: Final = 80
"""Of a member that the client has named itself, in a sentence."""

_OAUTH_CODE_OF_STATUS: Final = {
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "temporarily_unavailable",
    HTTPStatus.TOO_MANY_REQUESTS: "temporarily_unavailable",
}


def problem(
    error: ServiceError,
    request_id: str,
    *,
    errors: Sequence[tuple[str, str]] = (),
    **extensions: Any,
) -> web.Response:
    """Return the response; `errors` are JSON pointers and what is wrong there.

    Where nothing more is known than the title, the detail adds what a client can do about it.
    """
    if error.field:
        errors = [(f"#/{error.field}", error.detail)]
    if errors:
        extensions["errors"] = [{"pointer": pointer, "detail": text} for pointer, text in errors]
    if isinstance(error, BalanceTooLow):
        extensions["available"] = error.available
    status, detail = status_of(type(error)), error.detail
    if detail == error.title:
        detail += f" {PROBLEM_TYPES[error.code].remedy}"
    if extensions:
        known = _members(error.code, error.title, status, detail, request_id)
        body = to_json({**known, **extensions})
    else:
        around = _around_request_id(error.code, error.title, status, detail)
        body = request_id.encode().join(around)
    response = PrebuiltResponse(body, CONTENT_TYPE, status)
    if isinstance(error, InsufficientScope):
        challenge = f'Bearer error="insufficient_scope", scope="{error.scope}"'
        response.headers["WWW-Authenticate"] = challenge
    if isinstance(error, NotAuthenticated):
        sent = isinstance(error, InvalidToken)
        response.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if sent else "Bearer"
    if error.wait is not None:
        response.headers["Retry-After"] = str(error.wait)
    return response


@functools.lru_cache(256)
def _around_request_id(code: str, title: str, status: int, detail: str) -> list[bytes]:
    """Return what stands before and after the request's id, which needs no escapes.

    Most look-ups by strangers end here, and encoding it each time takes a tenth of one.
    """
    placeholder = "request-id"
    members = _members(code, title, status, detail, placeholder)
    return to_json(members).rsplit(placeholder.encode(), 1)


def _members(code: str, title: str, status: int, detail: str, request_id: str) -> dict[str, Any]:
    return {
        "type": f"/problems/{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request_id,
    }


def problem_of(error: Exception, request: web.Request) -> web.Response:
    """Return the response to a request that ended with `error`."""
    refusal, errors = _refusal_of(error)
    response = problem(refusal, request[CONTEXT].request_id, errors=errors)
    if isinstance(error, web.HTTPException) and "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def _refusal_of(error: Exception) -> tuple[ServiceError, Sequence[tuple[str, str]]]:
    """Return what is told of `error`, with JSON pointers and what is wrong there."""
    match error:
        case ServiceError():
            return error, ()
        case ValidationError():
            errors = list(_flatten(error.normalized_messages()))  # type: ignore[no-untyped-call]
            if isinstance(error, InvalidBody):
                errors += error.further
            return InvalidInput(summary_of(errors)), errors
        case web.HTTPException():  # aiohttp's own: no route, another method, too large a body
            return KIND_OF_STATUS.get(HTTPStatus(error.status), BadRequest)(), ()
        case _:
            return InternalError(), ()


def oauth_error_of(error: Exception, request: web.Request) -> web.Response:
    """Return the response to a failed request under /oauth, as RFC 6749, 5.2 has it."""
    if isinstance(error, OAuthError):
        unauthorized = error.code == "invalid_client"
        status = HTTPStatus.UNAUTHORIZED if unauthorized else HTTPStatus.BAD_REQUEST
        headers = {"WWW-Authenticate": "Basic"} if unauthorized else {}
        code, description = error.code, error.description
    else:
        response = problem_of(error, request)
        status = HTTPStatus(response.status)
        kept = ("Allow", "Retry-After")
        headers = {name: response.headers[name] for name in kept if name in response.headers}
        description = _refusal_of(error)[0].detail
        code = _OAUTH_CODE_OF_STATUS.get(status, "invalid_request")
    return web.Response(
        status=status,
        body=to_json({"error": code, "error_description": description}),
        content_type="application/json",
        headers={**headers, "Cache-Control": "no-store", "Pragma": "no-cache"},
    )


def _flatten(messages: Mapping[Any, Any], parent: str = "#") -> Iterator[tuple[str, str]]:
    """Yield a JSON pointer (RFC 6901) and a message for each of marshmallow's errors."""
    for member, found in messages.items():
        pointer = parent if member == "_schema" else f"{parent}/{escape_pointer(str(member))}"
        if isinstance(found, Mapping):  # by member of an object, or by place in a list
            yield from _flatten(found, pointer)
        else:
            yield from ((pointer, message) for message in found)


def summary_of(errors: Sequence[tuple[str, str]]) -> str:
    """Return the first error as a sentence, and how many more there are."""
    pointer, text = errors[0]
    others = f" ({len(errors) - 1} more in `errors`.)" if len(errors) > 1 else ""
    where = "" if pointer == "#" else f"{pointer[:LONGEST_POINTER]}: "
    return f"{where}{text}{others}"


@docs(
    tags=["Reference"],
    summary="All problems",
    responses={200: page_of("A page that lists the problems and what to do about them.")},
)
async def list_problems(_: web.Request) -> web.Response:
    listed = sorted(PROBLEM_TYPES.values(), key=lambda each: (each.status, each.code))
    return web.Response(text=render("problems.html", problems=listed), content_type="text/html")


@docs(
    tags=["Reference"],
    summary="What a problem means",
    parameters=[in_path("code", "The `code` of a problem.", "validation-failed")],
    responses={200: page_of("A page that says what to do about it.")},
)
async def explain_problem(request: web.Request) -> web.Response:
    """GET /problems/{code}: the page that a problem's `type` leads to."""
    problem_type = PROBLEM_TYPES.get(request.match_info["code"])
    if problem_type is None:
        raise NotFound("There is no problem with this code.")
    return web.Response(text=render("problem.html", problem=problem_type), content_type="text/html")
