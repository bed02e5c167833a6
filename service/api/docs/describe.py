"""What handlers say about themselves in OpenAPI's own words, for `@docs(parameters=, responses=)`.

`@docs` takes two more keywords: `refuses`, the errors that the handler raises besides those of
every handler (an instance where it points to another member than usual), and `locates`, the
statuses whose response has a `Location`.
"""

from typing import Any, Final

IDEMPOTENCY_KEY: Final = {
    "in": "header",
    "name": "Idempotency-Key",
    "description": "A string unique to the request, such as a random UUID. For 24 hours, a request "
    "with the same key and body gets the first response again. A key belongs to the user or client "
    "that makes the call or, before sign-in, to the client's IP address.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
EXAMPLE_ID: Final = "01980c2e-6f52-7b1a-8e4d-5a9b0c1d2e3f"


def in_path(name: str, description: str, example: str) -> dict[str, Any]:
    """Describe a parameter in the path. An id needs none: see `id_in_path`."""
    return {
        "in": "path",
        "name": name,
        "required": True,
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }


def id_in_path(name: str) -> dict[str, Any]:
    """Describe a parameter in the path that is called `<thing>_id`."""
    described = in_path(name, f"The {name.removesuffix('_id')}'s id.", EXAMPLE_ID)
    return {**described, "schema": {"type": "string", "format": "uuid"}}


def page_of(description: str) -> dict[str, Any]:
    """Describe a response for people."""
    return {"description": description, "content": {"text/html": {"schema": {"type": "string"}}}}


def json_of(description: str) -> dict[str, Any]:
    """Describe a response with a JSON object that another document specifies."""
    content = {"application/json": {"schema": {"type": "object"}}}
    return {"description": description, "content": content}
