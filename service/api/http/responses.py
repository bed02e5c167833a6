"""Writing an answer."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import orjson
from aiohttp import web
from marshmallow import Schema, fields

from service.api.http.prebuilt import PrebuiltResponse
from service.domain.clock import plain_text
from service.domain.pages import Page
from service.repositories.idempotency_keys import Answer

JSON: Final = "application/json"


class PageSchema(Schema):
    """A page of a list. Subclasses say what the items are."""

    items: fields.Field[Any] = fields.List(fields.Raw())
    next_cursor = fields.Method(
        "write_cursor",
        metadata={
            "type": ["string", "null"],
            "description": "`cursor` of the next page; null on the last one.",
        },
    )

    prefix: ClassVar[str]
    """What the list's cursors begin with, so that no other list takes them."""

    def __init_subclass__(cls) -> None:
        cls.prefix = f"{cls.__name__.removesuffix('Schema')}."

    @classmethod
    def write_cursor(cls, page: Page[Any]) -> str | None:
        """Return the cursor of the next page as clients see it."""
        return None if page.next_cursor is None else cls.prefix + page.next_cursor.encode()


def to_json(document: Any) -> bytes:
    """Return the document as it is sent. Times are in UTC, and written like `moment_text`."""
    try:
        return orjson.dumps(document, option=orjson.OPT_UTC_Z)
    except orjson.JSONEncodeError:
        # Half of a surrogate pair, in the name of a member that a client sent and a problem names:
        # no UTF-8 can have it, and not every client can read its escape. Or a very large number.
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=plain_text)
        return text.encode("utf-8", "replace")


def write_items(schema: type[PageSchema], items: Sequence[Any], page: Page[Any]) -> bytes:
    """Return a page as it is sent, of which the items are written already."""
    return to_json({"items": items, "next_cursor": schema.write_cursor(page)})


def answer(request: web.Request, thing: Any, status: int = 200) -> Answer:
    """Return `thing` to be sent or kept, as the handler's `@response_schema` of the status has it.

    What is documented is what is sent.
    """
    responses = vars(request.match_info.handler)["__apispec__"]["responses"]
    return Answer(status, to_json(responses[f"{status:d}"]["schema"].dump(thing)))


def respond(request: web.Request, thing: Any, status: int = 200) -> web.Response:
    """Return the response with `thing`, written as `answer` does."""
    return PrebuiltResponse(answer(request, thing, status).body, status=status)


def no_content() -> web.Response:
    """Return the answer to what leaves nothing to say."""
    return web.Response(status=204)
