"""Exports: whole tables as a stream, in JSON or CSV."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp_apispec import docs, querystring_schema
from marshmallow import fields, validate

from service.api.docs.describe import in_path
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import needs
from service.api.http.fields import QuerySchema
from service.api.http.requests import read_query
from service.domain.clock import plain_text
from service.domain.errors import NotAllowed, NotFound
from service.domain.exports import COLUMNS, Exported, Place
from service.domain.scopes import Scope

NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
_DANGEROUS: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula, or skips before one."""


class ExportQuery(QuerySchema):
    format = fields.String(
        load_default="ndjson",
        validate=validate.OneOf(["ndjson", "csv"], error="This must be ndjson or csv."),
        metadata={
            "description": "`ndjson`: one JSON object per line. `csv`: CSV with a header row."
        },
    )
    after = fields.String(
        load_default=None,
        metadata={
            "description": "The `id` of the last row you received: the export continues after it."
        },
    )


_TEXT: Final = {"schema": {"type": "string"}}


@docs(
    tags=["Rewards"],
    summary="Export a table",
    description="Streams all rows of all programmes, ordered by id. If the stream breaks off, "
    "resume it with `after`. In CSV, text that a spreadsheet would read as a formula is prefixed "
    "with an apostrophe.",
    parameters=[in_path("table", f"One of {', '.join(Exported)}.", Exported.REWARDS)],
    responses={200: {"description": "The rows.", "content": {NDJSON: _TEXT, CSV: _TEXT}}},
    refuses=(NotAllowed,),
)
@querystring_schema(ExportQuery)
@needs(Scope.PROGRAMME_MANAGE)
async def export_table(request: web.Request) -> web.Response:
    if request.match_info["table"] not in set(Exported):
        raise NotFound
    table, query = Exported(request.match_info["table"]), read_query(request)
    batches = request.app[SERVICES].exports.batches(table, Place.parse(table, query["after"]))
    first = await anext(batches, None) or ()  # while there can still be another answer
    write = _csv_writer(COLUMNS[table]) if query["format"] == "csv" else _to_ndjson
    head = _to_csv([COLUMNS[table]]) if query["format"] == "csv" else b""

    async def stream() -> AsyncIterator[bytes]:
        yield head + write(first)
        async for batch in batches:
            yield write(batch)

    return web.Response(body=stream(), content_type=CSV if head else NDJSON, charset="utf-8")


def _to_ndjson(rows: Sequence[Mapping[str, Any]]) -> bytes:
    option = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE
    return b"".join(orjson.dumps(row, default=_text, option=option) for row in rows)


def _csv_writer(columns: Sequence[str]) -> Callable[[Sequence[Mapping[str, Any]]], bytes]:
    return lambda rows: _to_csv([[_cell(row[name]) for name in columns] for row in rows])


def _to_csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    """Return a value as a cell: numbers stay numbers, and no text becomes a formula."""
    if value is None or type(value) is int:
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value if isinstance(value, str) else _text(value)
    return f"'{text}" if text.startswith(_DANGEROUS) else text


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else plain_text(value)
