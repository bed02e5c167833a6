"""The OpenAPI 3.1 document, made from the decorators and the schemas of the handlers.

aiohttp-apispec's decorators collect what handlers say, but its writer knows Swagger 2.0 only. This
one adds what follows from the code alone: the problems a route can answer with, and the headers.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp_apispec import docs
from aiohttp_apispec.aiohttp_apispec import resolver
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from marshmallow import Schema, fields

from service.api.docs.components import (
    CLIENT_SECRET,
    DESCRIPTION,
    HEADERS,
    SECURITY_SCHEMES,
    TAGS,
    VERSION,
    OAuthErrorSchema,
    ProblemSchema,
)
from service.api.docs.describe import EXAMPLE_ID, IDEMPOTENCY_KEY, id_in_path, json_of
from service.api.docs.refusals import Refusal, problems_of
from service.api.docs.webhooks import describe_webhooks
from service.api.http.app_keys import SETTINGS
from service.api.http.authentication import is_limited, own_scope_of, scope_of
from service.api.http.fields import RequestSchema
from service.api.http.problems import CONTENT_TYPE
from service.api.http.responses import JSON, to_json
from service.api.http.static_files import StaticFile
from service.domain.errors import TooMany
from service.domain.scopes import OF_CLIENTS

EXAMPLE_OF_FORMAT: Final = {"uuid": EXAMPLE_ID, "date-time": "2026-11-21T09:30:00Z"}
RATE_LIMIT_HEADERS: Final = ("RateLimit", "RateLimit-Policy")
HEADERS_OF_STATUS: Final[Mapping[int, tuple[str, ...]]] = {
    302: ("Location",),
    303: ("Location",),
    401: ("WWW-Authenticate",),
    429: ("Retry-After", *RATE_LIMIT_HEADERS),
    503: ("Retry-After",),
}
BODY_OF_LOCATION: Final = {"json": JSON, "form": "application/x-www-form-urlencoded"}
PROBLEM_CONTENT: Final = {"schema": {"$ref": "#/components/schemas/Problem"}}
OAUTH_ERROR_CONTENT: Final = {"schema": {"$ref": "#/components/schemas/OAuthError"}}
OAUTH_ERRORS: Final = {
    400: "The request is malformed or refused (RFC 6749, 5.2).",
    500: "`server_error`: the service failed. The failure has been logged.",
    503: "`temporarily_unavailable`: try again later.",
}
OAUTH_ERRORS_OF_A_BODY: Final = {
    408: "The body did not arrive in time.",
    413: "The body is larger than 16 KiB.",
    415: "The body is compressed.",
}

Call = tuple[str, str, Callable[..., Any]]
"""Path, method and handler."""


class _JsonSchemas(OpenAPIConverter):
    """Writes marshmallow schemas as JSON Schema 2020-12."""

    def schema2jsonschema(self, schema: Schema) -> dict[str, Any]:
        written: dict[str, Any] = super().schema2jsonschema(schema)  # type: ignore[no-untyped-call]
        if not isinstance(schema, RequestSchema):
            # A response always has its members, except those that the schema calls optional, and
            # may have more of them one day.
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


class _Writer:
    """Adds operations to an APISpec."""

    def __init__(self, spec: APISpec, converter: OpenAPIConverter) -> None:
        self._spec = spec
        self._converter = converter

    def add(self, path: str, method: str, handler: Callable[..., Any]) -> None:
        said = _said_of(handler)
        operation: dict[str, Any] = {
            **{name: said[name] for name in ("tags", "summary", "description") if name in said},
            "operationId": _in_camel_case(handler.__name__),
            "parameters": [*_ids_in(path, said["parameters"]), *said["parameters"]],
            "responses": {},
            # Without a scope anyone may call it.
            "security": _security(handler) if scope_of(handler) else [],
        }
        for request in said["schemas"]:
            if kind := BODY_OF_LOCATION.get(request["location"]):
                operation["requestBody"] = self._request_body(kind, request)
            else:
                operation["parameters"] += self._parameters(request)
        refusals = [*said.get("refuses", ())]
        if method != "get" and is_limited(handler):
            refusals.append(TooMany)
        success = ["X-Request-Id"]
        if IDEMPOTENCY_KEY in operation["parameters"]:
            success.append("Idempotency-Replayed")
        if TooMany in refusals:
            success += RATE_LIMIT_HEADERS
        for status, response in said["responses"].items():
            headers = [*HEADERS_OF_STATUS.get(int(status), ()), *success]
            if int(status) in said.get("locates", ()):
                headers.append("Location")
            operation["responses"][str(status)] = self._response(response, headers)
        validated = [request["schema"] for request in said["schemas"]]
        reads_body = method == "post" or "requestBody" in operation
        if reads_body and "requestBody" not in operation:
            validated.append(RequestSchema())  # which has no members: `check_no_body`
        self._add_failures(path, operation, refusals, validated, reads_body=reads_body)
        self._spec.path(path=path, operations={method: operation})

    def _add_failures(
        self,
        path: str,
        operation: dict[str, Any],
        refusals: list[Refusal],
        validated: Iterable[Schema],
        *,
        reads_body: bool,
    ) -> None:
        if path.startswith("/oauth/"):
            _add_oauth_errors(operation)
            failure = {JSON: OAUTH_ERROR_CONTENT}
        else:
            problems = problems_of(path, operation, refusals, validated, reads_body=reads_body)
            for status, examples in problems.items():
                operation["responses"][str(status)] = self._problem_response(status, examples)
            failure = {CONTENT_TYPE: PROBLEM_CONTENT}
        # In order, because generators take the first success for the type of the result.
        operation["responses"] = dict(sorted(operation["responses"].items()))
        if min(operation["responses"]) >= "300":
            # Tools want a success or a default, and a redirect is neither.
            operation["responses"]["default"] = {
                "description": "The request has failed.",
                "content": failure,
            }

    def _refer_to(self, schema: Schema) -> Any:
        return self._converter.resolve_nested_schema(schema)  # type: ignore[no-untyped-call]

    def _parameters(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = self._converter.schema2parameters(
            request["schema"], location=request["location"]
        )
        for parameter in written:
            # marshmallow allows None where it is the default, but a query cannot express it.
            if isinstance(kinds := parameter["schema"]["type"], list):
                parameter["schema"]["type"] = kinds[0]
            if None in parameter["schema"].get("enum", ()):
                parameter["schema"]["enum"].remove(None)
        return written

    def _request_body(self, kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
        # aiohttp-apispec adds a member of its own to each example.
        example = {**request["example"]}
        example.pop("add_to_refs", None)
        content = {"schema": self._refer_to(request["schema"]), "example": example}
        needs_members = bool(request["schema"].validate({}))
        return {"required": needs_members, "content": {kind: content}}

    def _response(self, said: Mapping[str, Any], headers: Iterable[str]) -> dict[str, Any]:
        written = {"description": said["description"], "headers": _refer(headers)}
        if "schema" in said:
            written["content"] = {JSON: {"schema": self._refer_to(said["schema"])}}
        elif "content" in said:
            written["content"] = said["content"]
        return written

    def _problem_response(self, status: int, examples: Mapping[str, Any]) -> dict[str, Any]:
        """Return the response, or a reference to it if several routes share it."""
        shown = {
            code: {"summary": value["title"], "value": value} for code, value in examples.items()
        }
        written = {
            "description": " ".join(dict.fromkeys(value["title"] for value in examples.values())),
            "headers": _refer(["X-Request-Id", *HEADERS_OF_STATUS.get(status, ())]),
            "content": {CONTENT_TYPE: {**PROBLEM_CONTENT, "examples": shown}},
        }
        if any("errors" in value for value in examples.values()):
            return written  # it points to members of this route
        name = ".".join(examples)
        if name not in self._spec.components.responses:
            self._spec.components.response(name, written)
        return {"$ref": f"#/components/responses/{name}"}


def _add_oauth_errors(operation: dict[str, Any]) -> None:
    """Add the errors of RFC 6749, also to the pages shown to people."""
    errors = OAUTH_ERRORS | (OAUTH_ERRORS_OF_A_BODY if "requestBody" in operation else {})
    for status, description in errors.items():
        headers = _refer(["X-Request-Id", *HEADERS_OF_STATUS.get(status, ())])
        response: dict[str, Any] = {"description": description, "headers": headers}
        operation["responses"].setdefault(str(status), response)
    for status, response in operation["responses"].items():
        if int(status) >= HTTPStatus.BAD_REQUEST:
            response.setdefault("content", {}).setdefault(JSON, OAUTH_ERROR_CONTENT)


def _security(handler: Callable[..., Any]) -> list[dict[str, list[str]]]:
    """Return each way to be allowed to call the handler."""
    scopes = [scope for scope in (scope_of(handler), own_scope_of(handler)) if scope]
    return [
        {scheme: [scope.value]}
        for scheme in SECURITY_SCHEMES
        for scope in scopes
        if scheme != CLIENT_SECRET or scope in OF_CLIENTS
    ]


def _said_of(handler: Callable[..., Any]) -> dict[str, Any]:
    """Return what the decorators collected about a handler; empty without any."""
    said: dict[str, Any] = getattr(handler, "__apispec__", {})
    return said


def _in_sections(routes: Iterable[web.AbstractRoute]) -> list[Call]:
    """Return the documented calls, section by section."""
    calls = [
        (route.resource.canonical, route.method.lower(), route.handler)
        for route in routes
        # Where there is GET, HEAD goes without saying.
        if route.resource and _said_of(route.handler) and route.method != "HEAD"
    ]
    sections = list(TAGS)
    return sorted(calls, key=lambda call: sections.index(_said_of(call[2])["tags"][0]))


def _in_camel_case(name: str) -> str:
    """Return `name` as clients call it; Swagger UI takes `_` in an address for a space."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def _ids_in(path: str, described: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the ids in the path that the handler does not describe itself."""
    names = [part.strip("{}") for part in path.split("/") if part.endswith("_id}")]
    known = {parameter["name"] for parameter in described}
    return [id_in_path(name) for name in names if name not in known]


def _refer(headers: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in headers}


def build_openapi(
    app: web.Application, service_name: str, public_url: str, base_path: str = ""
) -> dict[str, Any]:
    """Return the document of the routes whose handlers are decorated, below `base_path`."""
    plugin = _MarshmallowPlugin(schema_name_resolver=resolver)
    spec = APISpec(
        title=service_name,
        version=VERSION,
        openapi_version="3.1.0",
        plugins=(plugin,),
        info={
            "description": DESCRIPTION.replace("](/", f"]({base_path}/"),
            # Linters want a licence, and generators a URL with a host for it: there is none yet.
            "license": {"name": "All rights reserved", "url": f"{public_url}/"},
        },
        # Relative, so that trying a call works at whatever address the page was loaded from.
        servers=[{"url": base_path or "/"}],
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    spec.components.schema("Problem", schema=ProblemSchema)
    spec.components.schema("OAuthError", schema=OAuthErrorSchema)
    for name, scheme in SECURITY_SCHEMES.items():
        spec.components.security_scheme(name, scheme)
    for name, description in HEADERS.items():
        kind = "integer" if name == "Retry-After" else "string"
        spec.components.header(name, {"description": description, "schema": {"type": kind}})
    assert plugin.converter is not None
    writer = _Writer(spec, plugin.converter)
    for call in _in_sections(app.router.routes()):
        writer.add(*call)
    # A copy, because the parts are shared by all documents of the process.
    document: dict[str, Any] = json.loads(to_json(spec.to_dict()))
    flow = document["components"]["securitySchemes"]["oauth2"]["flows"]["authorizationCode"]
    document["webhooks"] = describe_webhooks()
    flow |= {name: base_path + url for name, url in flow.items() if name.endswith("Url")}
    return document


@functools.lru_cache(1)
def _file_of(app: web.Application) -> StaticFile:
    # On the first request: writing it takes longer than the rest of a start.
    settings = app[SETTINGS]
    document = build_openapi(app, settings.service_name, settings.public_url, settings.base_path)
    return StaticFile.of(to_json(document), JSON)


@docs(tags=["Reference"], summary="This document", responses={200: json_of("OpenAPI 3.1.")})
async def show_openapi(request: web.Request) -> web.Response:
    return _file_of(request.app).respond(request)
