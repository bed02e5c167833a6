"""Which changes of the OpenAPI document break a client, and the document that clients know.

That one is `openapi.json` beside this file, without descriptions and examples. After a change that
breaks nobody, `make openapi` (`python -m tests.api.openapi_changes`) takes the document as it is
now. One that does is refused, there and in the tests, unless the major version in
service/api/docs/components.py is raised. Without the file a new one is written in any case.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from service.api.docs.openapi import build_openapi
from service.api.routes import ROUTES

KNOWN: Final = Path(__file__).with_name("openapi.json")

_PROSE: Final = {"description", "summary", "title", "example", "examples", "license"}
_CHOICES: Final = ("anyOf", "oneOf", "allOf")
"""Taken as lists whose order stays: which choice became which cannot be told otherwise."""
_DEPTH: Final = 5
"""As deep as this the file has a line for each member: down to a response, and to a property."""

Document = dict[str, Any]
Schema = Mapping[str, Any]
Fits = Callable[[Schema, Schema], bool]


def present_document() -> Document:
    """Return the document of the service as it is, without its prose."""
    app = web.Application()
    app.add_routes(ROUTES)
    bare: Document = _without_prose(build_openapi(app, "any", "any"))
    return bare


def known_document() -> Document:
    """Return the document that clients know."""
    known: Document = json.loads(KNOWN.read_text())
    return known


def breaking_changes(was: Document, now: Document) -> list[str]:
    """Return what breaks a client that knows one document and meets another.

    The rules are those of oasdiff, and one more: the names of calls, sections and schemas stay,
    because generated clients name their methods and classes after them.
    """
    if _major_version(now) > _major_version(was):
        return []
    changes = [
        f"the schema {name} is gone"
        for name in was["components"]["schemas"]
        if name not in now["components"]["schemas"]
    ]
    was, now = _resolved(was, was, {}), _resolved(now, now, {})
    changes += [
        f"{method.upper()} {path}: {change}"
        for path, operations in was["paths"].items()
        for method, operation in operations.items()
        for change in _of_operation(operation, now["paths"].get(path, {}).get(method))
    ]
    return changes


def _major_version(document: Document) -> int:
    return int(document["info"]["version"].partition(".")[0])


def _of_operation(was: Any, now: Any) -> Iterator[str]:
    if now is None:
        yield "the call is gone"
        return
    for member in ("operationId", "tags"):
        if was[member] != now[member]:
            yield f"{member} was {was[member]}, is {now[member]}"
    for way in was["security"] or [{}]:
        if not any(_is_enough(way, other) for other in now["security"] or [{}]):
            yield f"{way or 'no token'} is no longer enough"
    yield from _of_parameters(was["parameters"], now["parameters"])
    yield from _of_request_body(was.get("requestBody"), now.get("requestBody"))
    for status, response in was["responses"].items():
        if status in now["responses"]:
            for change in _of_response(response, now["responses"][status]):
                yield f"{status}: {change}"
        else:
            yield f"{status} is gone"


def _is_enough(had: Mapping[str, list[str]], needed: Mapping[str, list[str]]) -> bool:
    """Whether credentials with the one set of scopes satisfy the other (of each scheme)."""
    return all(
        scheme in had and set(scopes) <= set(had[scheme]) for scheme, scopes in needed.items()
    )


def _of_parameters(was: list[Any], now: list[Any]) -> Iterator[str]:
    were = {(one["in"], one["name"]): one for one in was}
    are = {(one["in"], one["name"]): one for one in now}
    for key, parameter in were.items():
        if key not in are:
            yield f"parameter {key[1]} is gone"
            continue
        schema, present = parameter["schema"], are[key]["schema"]
        if schema.get("default") != present.get("default"):
            yield f"parameter {key[1]}: the default was {schema.get('default')}"
        for change in _of_schema(schema, present, sent=True):
            yield f"parameter {key[1]}: {change}"
    for key, parameter in are.items():
        if parameter.get("required") and not were.get(key, {}).get("required"):
            yield f"parameter {key[1]} is now required"


def _of_request_body(was: Any, now: Any) -> Iterator[str]:
    if was is None:
        if now is not None and now.get("required"):
            yield "a body is now required"
        return
    if now is None:
        yield "the request's body is gone"
        return
    if now.get("required") and not was.get("required"):
        yield "the body is now required"
    yield from _of_content(was["content"], now["content"], sent=True)


def _of_response(was: Any, now: Any) -> Iterator[str]:
    yield from _of_content(was.get("content", {}), now.get("content", {}), sent=False)
    for name in was.get("headers", {}):
        if name not in now.get("headers", {}):
            yield f"the header {name} is gone"


def _of_content(was: Schema, now: Schema, *, sent: bool) -> Iterator[str]:
    for kind, about in was.items():
        if kind in now:
            yield from _of_schema(about["schema"], now[kind]["schema"], sent=sent)
        else:
            yield f"{kind} is gone"


def _of_schema(was: Schema, now: Schema, *, sent: bool, at: str = "#") -> Iterator[str]:
    """Yield what has changed for the worse in what clients send, or are sent.

    What they send must fit what the service accepts now; what they are sent, what they know.
    """
    if was == now:  # as nearly all are, and comparing them is fifty times as fast as the rest
        return
    narrow, wide = (was, now) if sent else (now, was)
    for keyword, fits in _FITS.items():
        if not fits(narrow, wide):
            yield f"{at}: {keyword} was {was.get(keyword)}, is {now.get(keyword)}"
    properties = was.get("properties", {})
    for name, schema in properties.items():
        if name in now.get("properties", {}):
            present = now["properties"][name]
            yield from _of_schema(schema, present, sent=sent, at=f"{at}/{name}")
        else:
            yield f"{at}/{name} is gone"
    if "items" in was and "items" in now:
        yield from _of_schema(was["items"], now["items"], sent=sent, at=f"{at}/-")
    for keyword in _CHOICES:
        for one, other in zip(was.get(keyword, ()), now.get(keyword, ()), strict=False):
            yield from _of_schema(one, other, sent=sent, at=at)


def _types(schema: Schema) -> set[str]:
    kinds = schema.get("type", "any")
    types = {kinds} if isinstance(kinds, str) else set(kinds)
    return types | {"integer"} if "number" in types else types


def _as_wide(keyword: str) -> Fits:
    return lambda narrow, wide: wide.get(keyword) in {None, narrow.get(keyword)}


def _as_low(keyword: str) -> Fits:
    least = float("-inf")
    return lambda narrow, wide: wide.get(keyword, least) <= narrow.get(keyword, least)


def _as_high(keyword: str) -> Fits:
    most = float("inf")
    return lambda narrow, wide: wide.get(keyword, most) >= narrow.get(keyword, most)


def _as_many(keyword: str) -> Fits:
    return lambda narrow, wide: len(narrow.get(keyword, ())) == len(wide.get(keyword, ()))


_FITS: Final[Mapping[str, Fits]] = {
    "type": lambda narrow, wide: "type" not in wide or _types(narrow) <= _types(wide),
    "enum": lambda narrow, wide: (
        "enum" not in wide or ("enum" in narrow and set(narrow["enum"]) <= set(wide["enum"]))
    ),
    "required": lambda narrow, wide: (
        set(wide.get("required", ())) <= set(narrow.get("required", ()))
    ),
    "additionalProperties": lambda narrow, wide: (
        wide.get("additionalProperties", True) or not narrow.get("additionalProperties", True)
    ),
    "items": lambda narrow, wide: "items" not in wide or "items" in narrow,
    **{keyword: _as_wide(keyword) for keyword in ("format", "pattern")},
    **{keyword: _as_low(keyword) for keyword in ("minimum", "minLength", "minItems")},
    **{keyword: _as_high(keyword) for keyword in ("maximum", "maxLength", "maxItems")},
    **{keyword: _as_many(keyword) for keyword in _CHOICES},
}
"""For each keyword, whether `wide` allows all that `narrow` does."""


def _without_prose(thing: Any, *, names: bool = False) -> Any:
    """Return a document without what only people read; `names` are members' names, and stay."""
    if isinstance(thing, list):
        return [_without_prose(part) for part in thing]
    if not isinstance(thing, dict):
        return thing
    return {
        name: _without_prose(part, names=name == "properties" and not names)
        for name, part in thing.items()
        if names or name not in _PROSE
    }


def _resolved(thing: Any, document: Document, known: dict[str, Any]) -> Any:
    """Return a part of a document with no references, and with constants as lists of one value.

    `known` keeps what each reference leads to, which is shared.
    """
    if isinstance(thing, list):
        return [_resolved(part, document, known) for part in thing]
    if not isinstance(thing, dict):
        return thing
    if reference := thing.get("$ref"):
        if reference not in known:
            found: Any = document
            for name in reference.removeprefix("#/").split("/"):
                found = found[name]
            known[reference] = _resolved(found, document, known)
        return known[reference]
    if isinstance(thing.get("const"), str):
        thing = {**thing, "enum": [thing["const"]]}
    return {name: _resolved(part, document, known) for name, part in thing.items()}


def _written(thing: Any, depth: int = 0) -> str:
    if depth == _DEPTH or not thing or not isinstance(thing, dict):
        return json.dumps(thing)
    begin, end = "\n" + " " * (depth + 1), "\n" + " " * depth
    members = (f"{json.dumps(name)}: {_written(part, depth + 1)}" for name, part in thing.items())
    return "{" + begin + f",{begin}".join(members) + end + "}"


def main() -> int:
    """Take the document as it is now for the one that clients know; refuse what breaks them."""
    now = present_document()
    if KNOWN.exists() and (breaking := breaking_changes(known_document(), now)):
        print("Clients would break. Keep what they know, or raise the major version:")
        for change in breaking:
            print(f"  {change}")
        return 1
    KNOWN.write_text(_written(now) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
