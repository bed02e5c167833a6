"""Reading a request: its JSON body, its query."""

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Never, TypeAlias
from uuid import UUID

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from marshmallow import Schema, ValidationError

from service.api.http.app_keys import SETTINGS
from service.api.http.fields import RequestSchema
from service.api.http.problem_types import BadRequest, RequestTimeout, UnsupportedMediaType
from service.domain.errors import InvalidInput, ServiceError
from service.domain.pages import Cursor

LARGEST_BODY: Final = 16 * 1024
BODY_SECONDS: Final = 10.0
Rule: TypeAlias = tuple[str, Callable[[Mapping[str, Any]], object]]
"""The path of a member, and a check of it, given all members, that raises InvalidInput."""
_Repeating: TypeAlias = dict[int, tuple[dict[str, Any], set[str]]]
"""Objects with repeated members, by `id`, and the names of those members."""


class InvalidBody(ValidationError):
    """The schema's errors, and `further` ones as JSON pointers and messages."""

    def __init__(self, messages: dict[str, Any], further: Sequence[tuple[str, str]]) -> None:
        super().__init__(messages)
        self.further = further


_NO_MEMBERS: Final = RequestSchema()


async def read_body(request: web.Request, *rules: Rule) -> dict[str, Any]:
    """Return the members of the JSON body, by the handler's `@request_schema`.

    Where no member is needed, no body is as good as `{}`.

    Raises InvalidBody with everything that is wrong at once: the schema's errors and the broken
    `rules`. If a single rule is broken and nothing else, the use case refuses instead, and may
    have another answer to give first. Raises BadRequest, RequestTimeout or UnsupportedMediaType
    for a body that cannot be read.
    """
    schema = _schema_of(request.match_info.handler, "json")
    raw = await read_bytes(request)
    document, repeated = _parse(request, raw) if raw or schema.validate({}) else ({}, [])
    further = [(pointer, "This member appears more than once.") for pointer in repeated]
    try:
        loaded: dict[str, Any] = schema.load(document)
    except ValidationError as error:
        members = error.valid_data if isinstance(error.valid_data, dict) else {}
        further += _broken(rules, members)
        raise InvalidBody(error.normalized_messages(), further) from error  # type: ignore[no-untyped-call]
    if repeated or len(rules) > 1:
        further += _broken(rules, loaded)
    if repeated or len(further) > 1:
        raise InvalidBody({}, further)
    return loaded


def _broken(rules: Sequence[Rule], members: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for path, check in rules:
        value: Any = members
        for name in path.split("/"):
            value = (value or {}).get(name)
        try:
            if value is not None:
                check(members)
        except InvalidInput as error:
            yield f"#/{path}", error.detail


async def check_no_body(request: web.Request) -> None:
    """Refuse members in the body of a POST whose handler declares none: `{}` is as good as nothing.

    Raises as `read_body` does. A body of GET or DELETE has no meaning, and is not looked at
    (RFC 9110, 9.3).
    """
    if request.method != "POST" or not request.body_exists:
        return
    if _declared(request.match_info.handler, "json"):
        return
    if raw := await read_bytes(request):  # not an empty chunked one
        document, _ = _parse(request, raw)
        _NO_MEMBERS.load(document)


def read_query(request: web.Request) -> dict[str, Any]:
    """Return the query parameters, by the handler's `@querystring_schema`."""
    handler = request.match_info.handler
    if not request.query_string:
        return dict(_defaults(handler))
    loaded: dict[str, Any] = _schema_of(handler, "querystring").load(request.query)
    return loaded


@functools.cache
def _defaults(handler: object) -> Mapping[str, Any]:
    """Return what an empty query means: loading it takes half as long as an empty answer."""
    defaults: Mapping[str, Any] = _schema_of(handler, "querystring").load({})
    return defaults


def _schema_of(handler: object, location: str) -> Schema:
    """Return what aiohttp-apispec's decorators have declared: what is documented is validated."""
    [schema] = _declared(handler, location)
    return schema


def _declared(handler: object, location: str) -> list[Schema]:
    declared = getattr(handler, "__schemas__", ())
    return [each["schema"] for each in declared if each["location"] == location]


def read_page(request: web.Request) -> tuple[int, Cursor | None]:
    """Return the requested page size, and the cursor after which the page starts."""
    return page_in(request, read_query(request))


def page_in(request: web.Request, query: Mapping[str, Any]) -> tuple[int, Cursor | None]:
    """Return the same of its query, which has been read."""
    cursor = own_cursor(request, query["cursor"])
    return query["limit"], None if cursor is None else Cursor.decode(cursor)


def own_cursor(request: web.Request, cursor: str | None) -> str | None:
    """Return the cursor without its list's prefix, which stays if that is another list.

    A cursor with a prefix cannot be decoded. One that an older release gave has none, and is taken
    by every list.
    """
    schema = request.match_info.handler.__apispec__["responses"]["200"]["schema"]  # type: ignore[attr-defined]
    return cursor and cursor.removeprefix(schema.prefix)


def find_id(request: web.Request, name: str) -> UUID | None:
    """Return the id in the path, None if it is malformed."""
    try:
        return UUID(request.match_info[name])
    except ValueError:
        return None


def read_id(request: web.Request, name: str, not_found: type[ServiceError]) -> UUID:
    """Return the id in the path; raise `not_found` if it is malformed."""
    found = find_id(request, name)
    if found is None:
        raise not_found
    return found


def public_path(request: web.Request, path: str) -> str:
    """Return a path of the service as clients see it, below that of PUBLIC_URL."""
    return request.app[SETTINGS].base_path + path


def header_text(request: web.Request, name: str) -> str | None:
    """Return a header as text that can be stored, with bytes that are not UTF-8 replaced."""
    value = request.headers.get(name)
    return value and value.encode(errors="replace").decode()


async def read_bytes(request: web.Request) -> bytes:
    """Return the body as it was sent.

    Raises RequestTimeout if it is late, BadRequest if it is broken, and UnsupportedMediaType if it
    is compressed.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.read()
    except TimeoutError as error:
        raise RequestTimeout("The body did not arrive in time.") from error
    except (web.RequestPayloadError, HttpProcessingError, ConnectionError) as error:
        raise BadRequest("The body cannot be read.") from error
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Send the body without Content-Encoding.")
    return raw


def _parse(request: web.Request, raw: bytes) -> tuple[Any, list[str]]:
    """Return the body's document, and the JSON pointers of its repeated members."""
    if not raw:
        raise BadRequest("The body is empty; send JSON.")
    charset = "utf-8" if request.charset is None else request.charset.lower()
    if request.content_type != "application/json" or charset not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType("Send the body as application/json in UTF-8.")
    repeating: _Repeating = {}
    try:
        document = json.loads(
            raw.decode("utf-8-sig"),
            parse_constant=_refuse_constant,
            object_pairs_hook=functools.partial(_to_object, repeating),
        )
    except UnicodeDecodeError as error:
        raise BadRequest("The body is not UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise BadRequest("The body is not JSON.") from error
    return document, _find_repeated(repeating, document) if repeating else []


def _to_object(repeating: _Repeating, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members as an object, noted in `repeating` if some are repeated."""
    members = dict(pairs)
    if len(members) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeating[id(members)] = members, {name for name in members if counts[name] > 1}
    return members


def _find_repeated(repeating: _Repeating, document: Any) -> list[str]:
    # Not by recursion: a body may be as deep as the stack.
    found: list[str] = []
    left = [("#", document)]
    while left:
        pointer, value = left.pop()
        if isinstance(value, dict):
            places = {name: f"{pointer}/{escape_pointer(name)}" for name in value}
            _, repeated = repeating.get(id(value), (value, set()))
            found += [place for name, place in places.items() if name in repeated]
            left += [(places[name], member) for name, member in value.items()]
        elif isinstance(value, list):
            left += [(f"{pointer}/{place}", item) for place, item in enumerate(value)]
    return found


def escape_pointer(name: str) -> str:
    """Return a member's name, escaped for a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")
