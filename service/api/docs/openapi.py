"""The OpenAPI 3.1 document, made from the decorators and the schemas of the handlers.

aiohttp-apispec collects what its decorators say, and writes Swagger 2.0. `OpenApi` extends it to
write 3.1, and adds to each route what follows from the code alone: the problems that it can
answer with, and the headers.
"""

import functools
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeVar

from aiohttp import web
from aiohttp_apispec import AiohttpApiSpec, docs
from aiohttp_apispec.aiohttp_apispec import resolver
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from marshmallow import Schema, fields

from service.api.http.app_keys import SETTINGS
from service.api.http.front import API
from service.api.http.problems import (
    BAD_REQUEST,
    CONTENT_TYPE,
    HEADERS_TOO_LARGE,
    INTERNAL_ERROR,
    PROBLEM_TYPES,
    URI_TOO_LONG,
    ProblemType,
    problem,
    problem_type_of,
)
from service.api.http.requests import RequestSchema
from service.api.http.responses import JSON, to_json
from service.api.http.scopes import SCOPE_OF, is_counted_write
from service.api.http.static_files import StaticFile
from service.domain.errors import (
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InsufficientScope,
    InvalidInput,
    InvalidToken,
    MigrationsPending,
    NotFound,
    Overloaded,
    ServiceError,
    TokenMissing,
    TooMany,
)
from service.domain.scopes import Scope

VERSION: Final = "1.0.0"
DESCRIPTION: Final = f"""
Users register, create a referral code, and see who registered with it.

**To try it, open [/docs](/docs), and:**

1. *Register* an account.
2. *Sign in*, and copy the `access_token` of the answer.
3. Paste it into **Authorize**, at the top of the page.
4. *Create my referral code*.
5. *Find a referrer's code by email address*: anyone may, without a token.
6. Register a second account with the code, and *List a referrer's referrals* of `me`.

Every error, except under `/oauth`, is a problem document (RFC 9457,
`{CONTENT_TYPE}`) whose `type` leads to a page that explains it. Unknown members of a body are
refused. Times are in UTC (RFC 3339). Lists are read page by page: send the `next_cursor` of a page
as `cursor` to get the next one.
""".strip()
# In the order of use, which is the order of the sections on the pages.
TAGS: Final = {
    "Accounts": "Register, with or without a referral code, and manage your account.",
    "Referral codes": "One live code for each user, which anyone can find by email address.",
    "Referrals": "The users who registered with a referrer's code.",
    "Sessions": "Sign in, stay signed in, sign out, change the password.",
    "Email": "Confirm or change an email address, reset a password, verify an address.",
    "OAuth 2.0": "Access for other applications, with the user's consent. Errors follow RFC 6749.",
    "Admin": "For users with the role `admin`.",
    "Operating": "For operators and their tools.",
    "Reference": "What each problem means, and this document.",
}

SECURITY_SCHEMES: Final[dict[str, dict[str, Any]]] = {
    "bearerAuth": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The `access_token` of *Sign in*.",
    },
    "oauth2": {
        "type": "oauth2",
        "description": "Authorization code with PKCE. On this page, `client_id` is `swagger-ui`.",
        "flows": {
            "authorizationCode": {
                "authorizationUrl": "/oauth/authorize",
                "tokenUrl": "/oauth/token",
                "refreshUrl": "/oauth/token",
                "scopes": {scope.value: scope.meaning for scope in Scope},
            }
        },
    },
}

IDEMPOTENCY_KEY: Final = {
    "in": "header",
    "name": "Idempotency-Key",
    "description": "A text that is unique to the request, such as a random UUID. Within 24 hours "
    "the same key with the same body gets the first answer again. Keys are the user's own, or, "
    "before signing in, those of the client's address.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
# By how they stand in the path.
PATH_PARAMETERS: Final = {
    "{email}": ("The referrer's email address.", {"type": "string"}, "anna@example.com"),
    "{referrer_id}": ("The referrer's id, or `me`.", {"type": "string"}, "me"),
    "{session_id}": (
        "The session's id.",
        {"type": "string", "format": "uuid"},
        "01980c2e-7a10-7c3b-9d6f-3f0a5b1c2d3e",
    ),
    "{identity_id}": (
        "The identity's id.",
        {"type": "string", "format": "uuid"},
        "01980c2e-8b21-7d4c-8e70-4a1b6c2d3e4f",
    ),
    "{user_id}": (
        "The user's id.",
        {"type": "string", "format": "uuid"},
        "01980c2e-6f52-7b1a-8e4d-5a9b0c1d2e3f",
    ),
    "{provider}": ("The provider's name.", {"type": "string"}, "google"),
    "problems/{code}": ("The `code` of a problem.", {"type": "string"}, "validation-failed"),
    "codes/{code}": ("The code as it was typed.", {"type": "string"}, "ANNA-2026"),
}
EXAMPLE_OF_FORMAT: Final = {
    "uuid": "01980c2e-6f52-7b1a-8e4d-5a9b0c1d2e3f",
    "date-time": "2026-11-21T09:30:00Z",
}
EXAMPLE_REQUEST_ID: Final = "5f2b8f0a1c9d4e7f8a6b3c2d1e0f9a8b"

PROBLEM_SCHEMA: Final = {
    "type": "object",
    "description": "Why the request was refused (RFC 9457).",
    "required": ["type", "title", "status", "code", "detail", "request_id"],
    "properties": {
        "type": {
            "type": "string",
            "format": "uri-reference",
            "description": "A page that explains the problem, below the server's URL.",
        },
        "title": {"type": "string", "description": "The same for every problem of this code."},
        "status": {"type": "integer", "description": "The status of the response."},
        # No enum: a client generated today must understand what gets a code tomorrow.
        "code": {
            "type": "string",
            "description": "What kind of problem it is, for programs; more kinds may be added.",
            "examples": ["validation-failed"],
        },
        "detail": {"type": "string", "description": "What is wrong with this request."},
        "request_id": {"type": "string", "description": "What the log has the request under."},
        "errors": {
            "type": "array",
            "description": "The members at fault, where there are any.",
            "items": {"$ref": "#/components/schemas/InvalidMember"},
        },
    },
}
INVALID_MEMBER_SCHEMA: Final = {
    "type": "object",
    "description": "One thing that is wrong with a member of the request.",
    "required": ["pointer", "detail"],
    "properties": {
        "pointer": {
            "type": "string",
            "description": "Which member: a JSON pointer (RFC 6901).",
            "examples": ["#/expires_at"],
        },
        "detail": {"type": "string"},
    },
}

OAUTH_ERROR_SCHEMA: Final = {
    "type": "object",
    "description": "Why the request was refused (RFC 6749, 5.2).",
    "required": ["error", "error_description"],
    "properties": {
        "error": {"type": "string", "examples": ["invalid_grant"]},
        "error_description": {"type": "string"},
    },
}

HEADERS: Final = {
    "Location": "The address to go to; of a new resource, its own.",
    "X-Request-Id": "The id of the request: the client's, if it sent a valid one.",
    "Idempotency-Replayed": "`true` where this is the first answer to the key, sent again.",
    "RateLimit": "What is left of the limits (draft-ietf-httpapi-ratelimit-headers).",
    "RateLimit-Policy": "The limits that the request was counted in.",
    "Retry-After": "The seconds after which another try may succeed.",
    "WWW-Authenticate": "`Bearer`, with `error` where a token was sent (RFC 6750); "
    "`Basic` where a client authenticates.",
}
RATE_LIMIT_HEADERS: Final = ("RateLimit", "RateLimit-Policy")
HEADERS_OF_STATUS: Final = {
    303: ("Location",),
    401: ("WWW-Authenticate",),
    429: ("Retry-After", *RATE_LIMIT_HEADERS),
    503: ("Retry-After",),
}

BODY_OF_LOCATION: Final = {
    "json": JSON,
    "form": "application/x-www-form-urlencoded",
}
PROBLEM_CONTENT: Final = {"schema": {"$ref": "#/components/schemas/Problem"}}
OAUTH_ERROR_CONTENT: Final = {"schema": {"$ref": "#/components/schemas/OAuthError"}}
OAUTH_ERRORS: Final = {
    400: "The request is malformed, or refused (RFC 6749, 5.2).",
    500: "`server_error`: the service failed. The failure is logged.",
    503: "`temporarily_unavailable`: try again later.",
}
OAUTH_ERRORS_OF_A_BODY: Final = {
    408: "The body did not arrive in time.",
    413: "The body is larger than 16 KiB.",
    415: "The body is compressed.",
}

_ADD_TO_REFS: Final = "add_to_refs"
"""What aiohttp-apispec puts among the members of an example."""

H = TypeVar("H", bound=Callable[[web.Request], Awaitable[web.StreamResponse]])

_refusals: Final[dict[Callable[..., Any], tuple[type[ServiceError], ...]]] = {}


def refuses(*errors: type[ServiceError]) -> Callable[[H], H]:
    """Document the errors that the decorated handler raises, besides those of every handler."""

    def remember(handler: H) -> H:
        _refusals[handler] = errors
        return handler

    return remember


def locates(handler: H) -> H:
    """Document that the decorated handler's 201 has a `Location`."""
    handler.__apispec__["responses"]["201"]["headers"] = ("Location",)  # type: ignore[attr-defined]
    return handler


class _JsonSchemas(OpenAPIConverter):
    """Writes marshmallow schemas as JSON Schema 2020-12."""

    def schema2jsonschema(self, schema: Schema) -> dict[str, Any]:
        written: dict[str, Any] = super().schema2jsonschema(schema)  # type: ignore[no-untyped-call]
        if not isinstance(schema, RequestSchema):
            # An answer has its members always, but for those that the schema calls optional, and
            # may get more of them one day.
            written.pop("additionalProperties", None)
            optional = getattr(schema, "optional", ())
            written["required"] = [name for name in written["properties"] if name not in optional]
            for member in written["properties"].values():
                member.pop("readOnly", None)
        return written

    def field2property(self, field: fields.Field[Any]) -> dict[str, Any]:
        written: dict[str, Any] = super().field2property(field)
        if isinstance(field, fields.Constant):
            del written["default"]
            assert isinstance(field.constant, str)
            written |= {"type": "string", "const": field.constant}
        if isinstance(field, fields.Enum):
            written["type"] = "string"
        if written.get("default", ...) is None:
            del written["default"]
        example = written.pop("example", EXAMPLE_OF_FORMAT.get(written.get("format", "")))
        if example is not None:
            written["examples"] = [example]
        return written


class _MarshmallowPlugin(MarshmallowPlugin):
    Converter = _JsonSchemas


class OpenApi(AiohttpApiSpec):  # type: ignore[misc]
    """aiohttp-apispec, but writing OpenAPI 3.1, and leaving application and handlers as they are.

    The original's `register` puts a route and string keys into the application; this one is only
    asked for the document.
    """

    def __init__(self, **about: Any) -> None:
        super().__init__(url=None, title=about["title"], version=about["version"])
        plugin = _MarshmallowPlugin(schema_name_resolver=resolver)
        self.spec = APISpec(plugins=(plugin,), openapi_version="3.1.0", **about)
        assert plugin.converter is not None
        self.converter = plugin.converter
        self.spec.components.schema("Problem", PROBLEM_SCHEMA)
        self.spec.components.schema("InvalidMember", INVALID_MEMBER_SCHEMA)
        self.spec.components.schema("OAuthError", OAUTH_ERROR_SCHEMA)
        for name, scheme in SECURITY_SCHEMES.items():
            self.spec.components.security_scheme(name, scheme)
        for name, description in HEADERS.items():
            kind = "integer" if name == "Retry-After" else "string"
            self.spec.components.header(
                name, {"description": description, "schema": {"type": kind}}
            )

    def document(self, app: web.Application) -> dict[str, Any]:
        """Return the document of all routes of `app` whose handlers are decorated."""
        for path, method, handler in _in_order_of_use(app.router.routes()):
            self._register_call(path, method, handler)
        written: dict[str, Any] = self.swagger_dict()
        return written

    def _register_call(self, path: str, method: str, handler: Callable[..., Any]) -> None:
        said = _said_of(handler)
        operation: dict[str, Any] = {
            **{name: said[name] for name in ("tags", "summary", "description") if name in said},
            "operationId": _in_camel_case(handler.__name__),
            "parameters": [*_path_parameters(path), *said["parameters"]],
            "responses": {},
            "security": [],  # anyone may
        }
        if scope := SCOPE_OF.get((method.upper(), path)):
            operation["security"] = [{scheme: [scope.value]} for scheme in SECURITY_SCHEMES]
        validated: list[Schema] = []
        for request in said["schemas"]:
            validated.append(request["schema"])
            if kind := BODY_OF_LOCATION.get(request["location"]):
                operation["requestBody"] = self._request_body(kind, request)
            else:
                operation["parameters"] += self._parameters(request)
        refusals = _refusals.get(handler, ())
        if scope and is_counted_write(method.upper(), path):
            refusals = (*refusals, TooMany)
        for status, response in said["responses"].items():
            headers = [*_headers_of(int(status)), *_headers_of_success(operation, refusals)]
            operation["responses"][str(status)] = self._response(response, headers)
        if path.startswith("/oauth/"):
            self._add_oauth_errors(operation)
            failure = {JSON: OAUTH_ERROR_CONTENT}
        else:
            problems = _problems(path, operation, refusals, validated)
            for status, examples in problems.items():
                operation["responses"][str(status)] = self._problem_response(status, examples)
            failure = {CONTENT_TYPE: PROBLEM_CONTENT}
        # In order, because generators take the first success for the type of the result.
        operation["responses"] = dict(sorted(operation["responses"].items()))
        if min(operation["responses"]) >= "300":
            # Tools want a success or a default, and a redirect is neither.
            operation["responses"]["default"] = {"description": "A failure.", "content": failure}
        self.spec.path(path=path, operations={method: operation})

    def _refer_to(self, schema: Schema) -> Any:
        return self.converter.resolve_nested_schema(schema)  # type: ignore[no-untyped-call]

    def _parameters(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = self.converter.schema2parameters(
            request["schema"], location=request["location"]
        )
        for parameter in written:
            # marshmallow allows None where it is the default, but nobody can write it in a query.
            if isinstance(kinds := parameter["schema"]["type"], list):
                parameter["schema"]["type"] = kinds[0]
        return written

    def _request_body(self, kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
        content = {
            "schema": self._refer_to(request["schema"]),
            "example": {
                name: value for name, value in request["example"].items() if name != _ADD_TO_REFS
            },
        }
        return {"required": True, "content": {kind: content}}

    def _response(self, said: Mapping[str, Any], headers: Iterable[str]) -> dict[str, Any]:
        written = {
            "description": said["description"],
            "headers": _refer([*headers, *said.get("headers", ())]),
        }
        if "schema" in said:
            written["content"] = {JSON: {"schema": self._refer_to(said["schema"])}}
        elif "content" in said:
            written["content"] = said["content"]
        return written

    def _add_oauth_errors(self, operation: dict[str, Any]) -> None:
        """Add the errors of RFC 6749 beside the pages that answer people, and describe them."""
        errors = OAUTH_ERRORS | (OAUTH_ERRORS_OF_A_BODY if "requestBody" in operation else {})
        for status, description in errors.items():
            headers = _refer(["X-Request-Id", *_headers_of(status)])
            told: dict[str, Any] = {"description": description, "headers": headers}
            operation["responses"].setdefault(str(status), told)
        for status, response in operation["responses"].items():
            if int(status) >= HTTPStatus.BAD_REQUEST:
                response.setdefault("content", {}).setdefault(JSON, OAUTH_ERROR_CONTENT)

    def _problem_response(self, status: int, examples: Mapping[str, Any]) -> dict[str, Any]:
        """Return the response, or a reference to it where several routes share it."""
        written = {
            "description": " ".join(dict.fromkeys(value["title"] for value in examples.values())),
            "headers": _refer(["X-Request-Id", *_headers_of(status)]),
            "content": {
                CONTENT_TYPE: {
                    **PROBLEM_CONTENT,
                    "examples": {
                        code: {"summary": value["title"], "value": value}
                        for code, value in examples.items()
                    },
                }
            },
        }
        if any("errors" in value for value in examples.values()):
            return written  # it points at the members of this route
        name = ".".join(examples)
        if name not in self.spec.components.responses:
            self.spec.components.response(name, written)
        return {"$ref": f"#/components/responses/{name}"}


def _said_of(handler: Callable[..., Any]) -> dict[str, Any]:
    """Return what the decorators have said of a handler; nothing where it has none."""
    said: dict[str, Any] = getattr(handler, "__apispec__", {})
    return said


def _in_order_of_use(
    routes: Iterable[web.AbstractRoute],
) -> list[tuple[str, str, Callable[..., Any]]]:
    """Return path, method and handler of each documented call, section by section.

    In a section the order is the router's, but for a path that extends another, which follows it:
    the router has the hottest route first, and nobody begins with that.
    """
    calls = [
        (route.resource.canonical, route.method.lower(), route.handler)
        for route in routes
        # HEAD goes without saying where there is GET.
        if route.resource and _said_of(route.handler) and route.method != "HEAD"
    ]
    sections, paths = list(TAGS), [path for path, _, _ in calls]

    def place(call: tuple[str, str, Callable[..., Any]]) -> tuple[int, int, bool]:
        path, _, handler = call
        [tag] = _said_of(handler)["tags"]
        extended = path.partition("/{")[0]
        first = extended if extended in paths else path
        return sections.index(tag), paths.index(first), path != first

    return sorted(calls, key=place)


def _in_camel_case(name: str) -> str:
    """Return `name` as clients call it; Swagger UI takes `_` in an address for a space."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "in": "path",
            "name": place.partition("{")[2].rstrip("}"),
            "required": True,
            "description": description,
            "schema": schema,
            "example": example,
        }
        for place, (description, schema, example) in PATH_PARAMETERS.items()
        if place in path
    ]


def _problems(
    path: str,
    operation: Mapping[str, Any],
    refusals: Iterable[type[ServiceError]],
    validated: list[Schema],
) -> dict[int, dict[str, Any]]:
    """Return the problems that a route can answer with: by status, then by code."""
    found: dict[int, dict[str, Any]] = {}

    def add(problem_type: ProblemType, pointer: str | None = None, detail: str = "") -> None:
        of_status = found.setdefault(int(problem_type.status), {})
        of_status.setdefault(problem_type.code, _example(problem_type, pointer, detail))

    if operation["security"]:
        add(problem_type_of(TokenMissing))
        add(problem_type_of(InvalidToken))
        add(problem_type_of(InsufficientScope))
    for error in refusals:
        add(problem_type_of(error), error.default_pointer, error().detail)
    if IDEMPOTENCY_KEY in operation["parameters"]:
        add(problem_type_of(IdempotencyKeyReused))
    if "requestBody" in operation:
        add(PROBLEM_TYPES["request-timeout"])
        add(PROBLEM_TYPES["body-too-large"])
        add(PROBLEM_TYPES["unsupported-media-type"])
    for schema in validated:
        add(problem_type_of(InvalidInput), *_a_fault(schema))
    if "{" in path and 404 not in found:
        add(problem_type_of(NotFound))
    if path.startswith(API):
        add(URI_TOO_LONG)
        add(HEADERS_TOO_LARGE)
        if any("content" in response for response in operation["responses"].values()):
            add(PROBLEM_TYPES["not-acceptable"])
        add(problem_type_of(DatabaseUnavailable))
        add(problem_type_of(MigrationsPending))
        add(problem_type_of(Overloaded))
    add(BAD_REQUEST)  # an address too long to be read, too
    add(INTERNAL_ERROR)
    return found


def _example(problem_type: ProblemType, pointer: str | None, detail: str) -> dict[str, Any]:
    """Return a problem just as it is sent."""
    errors = [(pointer, detail)] if pointer else []
    sent = problem(problem_type, detail or problem_type.title, EXAMPLE_REQUEST_ID, errors=errors)
    assert isinstance(sent.body, bytes)
    document: dict[str, Any] = json.loads(sent.body)
    return document


def _a_fault(schema: Schema) -> tuple[str, str]:
    """Return a pointer and a message: a required member is missing, or else the first is wrong."""
    name, field = max(schema.fields.items(), key=lambda member: member[1].required)
    error = field.make_error("required" if field.required else "invalid", obj_type="value")
    return f"#/{name}", str(error.messages[0])


def _headers_of(status: int) -> tuple[str, ...]:
    return HEADERS_OF_STATUS.get(status, ())


def _headers_of_success(
    operation: Mapping[str, Any], refusals: Iterable[type[ServiceError]]
) -> Iterable[str]:
    yield "X-Request-Id"
    if IDEMPOTENCY_KEY in operation["parameters"]:
        yield "Idempotency-Replayed"
    if TooMany in refusals:
        yield from RATE_LIMIT_HEADERS


def _refer(headers: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in headers}


def build_openapi(
    app: web.Application, service_name: str, public_url: str, base_path: str = ""
) -> dict[str, Any]:
    """Return the document of all routes of `app`, which clients reach below that path."""
    # Linters want a licence, and generators an address with a host for it: there is no text yet.
    license_ = {"name": "All rights reserved", "url": f"{public_url}/"}
    openapi = OpenApi(
        title=service_name,
        version=VERSION,
        info={"description": DESCRIPTION, "license": license_},
        # Relative, so that trying a call works behind whatever address the page was loaded from.
        servers=[{"url": base_path or "/"}],
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    document = openapi.document(app)
    return _below(base_path, document) if base_path else document


def _below(base_path: str, document: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the document whose links begin with the path."""
    copy: dict[str, Any] = json.loads(to_json(document))
    copy["info"]["description"] = DESCRIPTION.replace("](/", f"]({base_path}/")
    flow = copy["components"]["securitySchemes"]["oauth2"]["flows"]["authorizationCode"]
    flow |= {name: base_path + url for name, url in flow.items() if name.endswith("Url")}
    return copy


@functools.lru_cache(1)
def _file_of(app: web.Application) -> StaticFile:
    # When it is first asked for: writing it takes longer than all else that a start does.
    settings = app[SETTINGS]
    document = build_openapi(app, settings.service_name, settings.public_url, settings.base_path)
    return StaticFile.of(to_json(document), "application/json")


@docs(
    tags=["Reference"],
    summary="This document",
    responses={
        200: {
            "description": "OpenAPI 3.1.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    },
)
async def show_openapi(request: web.Request) -> web.Response:
    return _file_of(request.app).respond(request)
