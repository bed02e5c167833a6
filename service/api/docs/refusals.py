"""Which problems a route can answer with, and an example of each."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from marshmallow import Schema

from service.api.docs.describe import IDEMPOTENCY_KEY
from service.api.http import problem_types as http
from service.api.http.front import API
from service.api.http.problems import problem, summary_of
from service.domain import errors
from service.domain.errors import InvalidInput, ServiceError

EXAMPLE_REQUEST_ID: Final = "5f2b8f0a1c9d4e7f8a6b3c2d1e0f9a8b"
Problems = dict[int, dict[str, Any]]
"""Examples by status, then by code."""
Refusal = type[ServiceError] | ServiceError
"""An error, or an example of one, where it points to another member than usual."""


def problems_of(
    path: str,
    operation: Mapping[str, Any],
    refusals: Iterable[Refusal],
    validated: Iterable[Schema],
    *,
    reads_body: bool,
) -> Problems:
    """Return the problems of a route, given what its handler refuses itself."""
    found: Problems = {}

    def add(*refusals: Refusal) -> None:
        for refusal in refusals:
            _add(found, refusal() if isinstance(refusal, type) else refusal)

    if operation["security"]:
        add(errors.NotAuthenticated, errors.InvalidToken, errors.InsufficientScope)
    add(*refusals)
    if IDEMPOTENCY_KEY in operation["parameters"]:
        add(errors.IdempotencyKeyReused)
    if reads_body:
        add(http.RequestTimeout, http.BodyTooLarge, http.UnsupportedMediaType)
    for schema in validated:
        fault = _a_fault(schema)
        _add(found, InvalidInput(summary_of([fault])), fault)
    if "{" in path and 404 not in found:
        add(errors.NotFound)
    if path.startswith(API):
        add(http.UriTooLong, http.HeadersTooLarge)
        if any("content" in response for response in operation["responses"].values()):
            add(http.NotAcceptable)
        add(errors.DatabaseUnavailable, errors.MigrationsPending, errors.Overloaded)
    add(http.BadRequest)  # also the answer to a URL or header that cannot be parsed
    add(http.InternalError)
    return found


def _add(found: Problems, error: ServiceError, *errors: tuple[str, str]) -> None:
    examples = found.setdefault(int(http.status_of(type(error))), {})
    body = problem(error, EXAMPLE_REQUEST_ID, errors=errors).body
    assert isinstance(body, bytes)
    examples.setdefault(error.code, json.loads(body))


def _a_fault(schema: Schema) -> tuple[str, str]:
    """Return the pointer and message of a missing member if one is required.

    Otherwise those of a malformed one or, where there are no members, of one too many.
    """
    if not schema.fields:
        return "#/member", schema.error_messages["unknown"]
    name, field = max(schema.fields.items(), key=lambda member: member[1].required)
    error = field.make_error("required" if field.required else "invalid", obj_type="value")
    return f"#/{name}", str(error.messages[0])
