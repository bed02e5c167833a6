"""Writing an answer."""

import json
from typing import Any

from aiohttp import web
from marshmallow import Schema, fields

from service.domain.idempotency import Answer


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
    """Return the document as it is sent."""
    return json.dumps(document, separators=(",", ":")).encode()


def answer(schema: Schema, thing: Any, status: int = 200) -> Answer:
    """Return `thing` as `schema` writes it, to be sent or kept."""
    return Answer(status, to_json(schema.dump(thing)))


def respond(schema: Schema, thing: Any, status: int = 200) -> web.Response:
    """Return the response with `thing` as `schema` writes it."""
    written = answer(schema, thing, status)
    return web.Response(status=status, body=written.body, content_type="application/json")


def no_content() -> web.Response:
    """Return the answer to what leaves nothing to say."""
    return web.Response(status=204)
