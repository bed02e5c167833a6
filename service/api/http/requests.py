"""Reading a request: its JSON body, its query."""

import asyncio
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Never, TypeAlias, TypeVar
from uuid import UUID

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from marshmallow import EXCLUDE, Schema, ValidationError, fields, pre_load, validate

from service.api.http.app_keys import CONTEXT, SETTINGS
from service.domain.errors import InvalidInput
from service.domain.pages import Cursor

LARGEST_BODY: Final = 16 * 1024
BODY_SECONDS: Final = 10.0
LARGEST_PAGE: Final = 100
BETWEEN: Final = "This must lie between {min} and {max}."
T = TypeVar("T")
Rule: TypeAlias = tuple[str, Callable[[Mapping[str, Any]], object]]
"""A member, and what raises InvalidInput where it, among the members of the body, is wrong."""
_Repeating: TypeAlias = dict[int, tuple[dict[str, Any], set[str]]]
"""Objects that have some members twice, by their ids, and the names of those members."""


class RequestSchema(Schema):
    """A body of which every member is known. Null for one that may be left out leaves it out."""

    error_messages = {  # noqa: RUF012  # as marshmallow has it
        "unknown": "There is no such member.",
        "type": "This is not an object.",
    }

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        field_obj.error_messages |= {
            "required": "This member is missing.",
            "null": "This member must not be null.",
        }
        # For the documentation: the value is gone before the field sees it.
        field_obj.allow_none = not field_obj.required

    @pre_load
    def _leave_out(self, data: Any, **_: Any) -> Any:
        if not isinstance(data, dict):
            return data
        optional = {name for name, field in self.fields.items() if not field.required}
        return {
            name: value for name, value in data.items() if value is not None or name not in optional
        }


class InvalidBody(ValidationError):
    """What the schema says, and further JSON pointers with what is wrong there."""

    def __init__(self, messages: dict[str, Any], further: Sequence[tuple[str, str]]) -> None:
        super().__init__(messages)
        self.further = further


class Text(fields.String):
    """A string that can be encoded: JSON can spell half of a surrogate pair, UTF-8 cannot."""

    default_error_messages = {  # noqa: RUF012  # as marshmallow has it
        "invalid": "This is not a string.",
        "invalid_utf8": "This is not Unicode text.",
    }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.make_error("invalid_utf8") from error
        return text


class TrimmedText(Text):
    """A text that is often pasted, with white space around it that does not count."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        return super()._deserialize(value, attr, data, **kwargs).strip()


class EmailText(TrimmedText):
    """An email address, which may be none: the use case decides."""


class TokenText(TrimmedText):
    """A token that was mailed."""


class TypedCode(Text):
    """A referral code as it was typed or pasted; nothing but white space is none."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        return super()._deserialize(value, attr, data, **kwargs).strip() or None


class WholeNumber(fields.Integer):
    """A JSON number without a fraction: no string, and no `true`, which Python takes for 1.

    30.0 is one too (JSON Schema 2020-12, 4.2.3): some languages write all their numbers so.
    """

    default_error_messages = {  # noqa: RUF012  # as marshmallow has it
        "invalid": "This is not a whole number."
    }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if type(value) is float and value.is_integer():
            return int(value)
        if type(value) is not int:
            raise self.make_error("invalid")
        return value


class TrueOrFalse(fields.Boolean):
    """A JSON true or false: not 1, which Python takes for true."""

    default_error_messages = {  # noqa: RUF012  # as marshmallow has it
        "invalid": "This is neither true nor false."
    }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


def moment_text(moment: datetime) -> str:
    """Return a time as answers have it (RFC 3339)."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


class Moment(fields.AwareDateTime):
    """A time with its zone (RFC 3339), in UTC inside the service and in answers."""

    _RFC_3339 = re.compile(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:[0-5]\d)", re.ASCII | re.IGNORECASE
    )

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, str) or not self._RFC_3339.fullmatch(value):
            raise ValidationError("This is not a time with its zone (RFC 3339).")
        moment = super()._deserialize(value.upper(), attr, data, **kwargs)
        try:
            return moment.astimezone(UTC)
        except OverflowError as error:
            raise self.make_error("invalid", input=value, obj_type=self.OBJ_TYPE) from error

    def _serialize(self, value: datetime | None, attr: Any, obj: Any, **kwargs: Any) -> Any:
        return value and moment_text(value)


class PageQuery(Schema):
    """Which page of a list is asked for."""

    class Meta:
        unknown = EXCLUDE

    limit = fields.Integer(
        load_default=20,
        validate=validate.Range(1, LARGEST_PAGE, error=BETWEEN),
        error_messages={"invalid": "This is not a whole number."},
        metadata={"description": "How many items, at most."},
    )
    cursor = fields.String(
        load_default=None,
        metadata={"description": "`next_cursor` of the page before; leave out for the first page."},
    )


_PAGE_QUERY: Final = PageQuery()
_FIRST_PAGE: Final = (_PAGE_QUERY.load({})["limit"], None)


async def read_body(request: web.Request, schema: Schema, into: type[T], *rules: Rule) -> T:
    """Return the body as an `into`; raise what becomes a problem.

    That is all at once: what the schema says, and which of the `rules` are broken. Where nothing
    else is wrong, the use case finds the one broken rule, or answers as it did before the rule was.
    """
    document, repeated = await _read_json(request)
    further = [(pointer, "This member appears more than once.") for pointer in repeated]
    try:
        loaded = schema.load(document)
    except ValidationError as error:
        members = error.valid_data if isinstance(error.valid_data, dict) else {}
        further += _broken(rules, members)
        raise InvalidBody(error.normalized_messages(), further) from error  # type: ignore[no-untyped-call]
    if repeated or len(rules) > 1:
        further += _broken(rules, loaded)
    if repeated or len(further) > 1:
        raise InvalidBody({}, further)
    return into(**loaded)


def _broken(rules: Sequence[Rule], members: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, check in rules:
        try:
            if members.get(name) is not None:
                check(members)
        except InvalidInput as error:
            yield f"#/{name}", error.detail


def read_query(request: web.Request, schema: Schema) -> dict[str, Any]:
    """Return the query's parameters that `schema` knows."""
    loaded: dict[str, Any] = schema.load(request.query)
    return loaded


def read_page(request: web.Request) -> tuple[int, Cursor | None]:
    """Return the size of the page asked for, and the place it begins behind."""
    if not request.query_string:
        return _FIRST_PAGE
    query = read_query(request, _PAGE_QUERY)
    cursor = query["cursor"]
    return query["limit"], None if cursor is None else Cursor.decode(cursor)


def read_id(request: web.Request, name: str) -> UUID | None:
    """Return the id in the path, or None where the text there is none."""
    try:
        return UUID(request.match_info[name])
    except ValueError:
        return None


def is_https(request: web.Request) -> bool:
    """Whether clients reach the service by https, whatever the last proxy speaks."""
    return request.app[SETTINGS].public_url.startswith("https:")


def public_path(request: web.Request, path: str) -> str:
    """Return the path by which clients reach one of the service's: PUBLIC_URL may have its own."""
    return request.app[SETTINGS].base_path + path


def cookie_path(request: web.Request) -> str:
    """Return for which paths a cookie of the service holds.

    With https it has the prefix __Host-, which browsers believe on the path / alone.
    """
    return "/" if is_https(request) else public_path(request, "") or "/"


def header_text(request: web.Request, name: str) -> str | None:
    """Return a header as text that can be stored: bytes that are not UTF-8 are replaced."""
    value = request.headers.get(name)
    return value and value.encode(errors="replace").decode()


async def read_bytes(request: web.Request) -> bytes:
    """Return the body as it was sent; raise an HTTP error if it is broken, compressed or late."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(reason="The body did not arrive in time.") from error
    except (web.RequestPayloadError, HttpProcessingError, ConnectionError) as error:
        raise web.HTTPBadRequest(reason="The body cannot be read.") from error
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise web.HTTPUnsupportedMediaType(reason="Send the body without Content-Encoding.")
    return raw


async def _read_json(request: web.Request) -> tuple[Any, list[str]]:
    """Return the body's document, and the JSON pointers of its repeated members."""
    raw = await read_bytes(request)
    if not raw:
        raise web.HTTPBadRequest(reason="The body is empty; send JSON.")
    if request.content_type != "application/json" or not _is_utf_8(request.charset):
        raise web.HTTPUnsupportedMediaType(reason="Send the body as application/json in UTF-8.")
    repeating: _Repeating = {}
    try:
        document = json.loads(
            raw.decode("utf-8-sig"),
            parse_constant=_refuse_constant,
            object_pairs_hook=functools.partial(_to_object, repeating),
        )
    except UnicodeDecodeError as error:
        raise web.HTTPBadRequest(reason="The body is not UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(reason="The body is not JSON.") from error
    request[CONTEXT].document = document
    return document, _find_repeated(repeating, document) if repeating else []


def _to_object(repeating: _Repeating, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these members, noted in `repeating` if it has some of them twice."""
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
    """Return the name of a member as a JSON pointer has it (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _is_utf_8(charset: str | None) -> bool:
    return charset is None or charset.lower() in {"utf-8", "utf8"}


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")
