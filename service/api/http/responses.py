"""Writing an answer."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import orjson
from aiohttp import web
from marshmallow import Schema, fields

from service.api.http.prebuilt import PrebuiltResponse
from service.domain.clock import moment_text
from service.domain.pages import BalanceCursor, Cursor
from service.repositories.idempotency_keys import Answer

JSON: Final = "application/json"


class PageSchema(Schema):
    """A page of a list. Subclasses say what the items are."""

    items: fields.Field[Any] = fields.List(fields.Raw())
    next_cursor = fields.Function(
        lambda page: page.next_cursor and page.next_cursor.encode(),
        metadata={
            "type": ["string", "null"],
            "description": "`cursor` of the next page; null on the last one.",
        },
    )


def to_json(document: Any) -> bytes:
    """Return the document as it is sent. Times are in UTC, and written like `moment_text`."""
    try:
        return orjson.dumps(document, option=orjson.OPT_UTC_Z)
    except orjson.JSONEncodeError:
        # Half of a surrogate pair, in the name of a member that a client sent and a problem names:
        # no UTF-8 can have it, and not every client can read its escape. Or a very large number.
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=_plain)
        return text.encode("utf-8", "replace")


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return moment_text(value)
    raise TypeError(type(value))


def write_items(items: Sequence[Any], next_cursor: Cursor | BalanceCursor | None) -> bytes:
    """Return a page of items, which are written already, as it is sent."""
    return to_json({"items": items, "next_cursor": next_cursor and next_cursor.encode()})


def answer(schema: Schema, thing: Any, status: int = 200) -> Answer:
    """Return `thing` as `schema` writes it, to be sent or kept."""
    return Answer(status, to_json(schema.dump(thing)))


def respond(schema: Schema, thing: Any, status: int = 200) -> web.Response:
    """Return the response with `thing` as `schema` writes it."""
    return PrebuiltResponse(to_json(schema.dump(thing)), status=status)


def no_content() -> web.Response:
    """Return the answer to what leaves nothing to say."""
    return web.Response(status=204)
