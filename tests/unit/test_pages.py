"""Cursors survive their way through a client, and nothing a client invents does harm."""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.domain.errors import CursorMalformed
from service.domain.pages import Cursor, Page
from tests.unit.strategies import ANY_TEXT

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENTS = st.timedeltas(timedelta(), datetime.max.replace(tzinfo=UTC) - EPOCH).map(EPOCH.__add__)
CURSORS = st.builds(Cursor, MOMENTS, st.uuids())


def place(row: int) -> Cursor:
    return Cursor(datetime.fromtimestamp(row, UTC), UUID(int=row))


@given(CURSORS)
def test_a_cursor_comes_back_as_it_went(cursor: Cursor) -> None:
    assert Cursor.decode(cursor.encode()) == cursor


@given(CURSORS)
def test_a_cursor_needs_no_escaping_in_a_url(cursor: Cursor) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", cursor.encode())


@given(ANY_TEXT)
@example("A" * 32)
@example("_" * 32)
def test_any_text_is_a_cursor_or_malformed(text: str) -> None:
    try:
        decoded = Cursor.decode(text)
    except CursorMalformed:
        return
    assert decoded.at.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("AAAA", id="too short for an id"),
        pytest.param("A" * 31, id="a character short"),
        pytest.param("A" * 36, id="three bytes too long"),
        pytest.param("A" * 31 + "=", id="one byte short, padded"),
        pytest.param("A" * 31 + "!", id="a character of another alphabet"),
        pytest.param(" " + "A" * 32, id="a space before it"),
        pytest.param("A" * 32 + "\n", id="a newline behind it"),
        pytest.param("\u0410" * 32, id="Cyrillic A"),
        pytest.param("\udcff" * 32, id="bytes that are not UTF-8"),
        pytest.param("_" * 32, id="a time behind the year 9999"),
        pytest.param("A" * 100_000, id="a book"),
    ],
)
def test_what_is_no_cursor_is_malformed(text: str) -> None:
    with pytest.raises(CursorMalformed) as caught:
        Cursor.decode(text)
    assert caught.value.field == "cursor"


@pytest.mark.parametrize(
    ("rows", "items", "next_cursor"),
    [
        pytest.param([], [], None, id="nothing"),
        pytest.param([3], [3], None, id="less than a page"),
        pytest.param([3, 2], [3, 2], None, id="exactly a page"),
        pytest.param([3, 2, 1], [3, 2], place(2), id="one more, which is not shown"),
    ],
)
def test_a_page_ends_at_its_last_item_and_has_a_next_one_if_there_are_more_rows(
    rows: list[int], items: list[int], next_cursor: Cursor | None
) -> None:
    assert Page.of(rows, 2, place) == Page(items, next_cursor)
