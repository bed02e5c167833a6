"""Whether the `Accept` header of a request allows JSON (RFC 9110, 12.5.1)."""

import functools
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp.hdrs import ACCEPT

from service.api.http.problem_types import NotAcceptable

_JSON: Final = "application/json"
# From the most specific range to the widest: the first one listed decides. Two of them are in no
# RFC, but clients send them: Spring the one with a suffix, Java's HttpURLConnection the asterisk.
_RANGES_OF_JSON: Final = (_JSON, "application/*", "*/*", "*")
_RANGES_OF_PROBLEM: Final = ("application/problem+json", "application/*+json", *_RANGES_OF_JSON[1:])
# Commas and semicolons within quotes separate nothing. A quote that is never closed extends to the
# end: each character is looked at once, whatever a client sends.
_QUOTED: Final = r'"(?:[^"\\]|\\.)*+[\\"]?'
_ELEMENT: Final = re.compile(rf'(?:[^,"]|{_QUOTED})+', re.DOTALL)
_PART: Final = re.compile(rf'(?:[^;"]|{_QUOTED})+', re.DOTALL)
_ZERO_WEIGHT: Final = re.compile(r"\s*q\s*=\s*(0+\.?|0*\.0+)\s*", re.IGNORECASE)


def check_accepts_json(request: web.Request) -> None:
    """Raise NotAcceptable if the request excludes JSON; several `Accept` lines are one list.

    `application/json` or `application/problem+json` is enough: a generated client may send only
    one of the types that a call documents.
    """
    lines = request.headers.getall(ACCEPT, ())
    if lines and not _accepts_json(tuple(lines)):
        raise NotAcceptable


def answers_with_json(handler: Callable[..., Any]) -> bool:
    """Whether the handler is documented to answer with JSON; otherwise any `Accept` is fine."""
    said = getattr(handler, "__apispec__", {"responses": {}})["responses"]
    return any(
        int(status) < HTTPStatus.BAD_REQUEST
        and ("schema" in about or _JSON in about.get("content", ()))
        for status, about in said.items()
    )


@functools.lru_cache(128)
def _accepts_json(lines: tuple[str, ...]) -> bool:
    listed: dict[str, bool] = {}
    for element in (element for line in lines for element in _ELEMENT.findall(line)):
        name, *parameters = _PART.findall(element) or ("",)
        name = name.strip().lower()
        if "/" in name or name == "*":  # anything else is not a range
            excluded = any(map(_ZERO_WEIGHT.fullmatch, parameters))
            listed[name] = listed.get(name, False) or not excluded
    if not listed or _decides(listed, _RANGES_OF_JSON):
        return True
    # A client that excludes application/json by name gets none.
    return _JSON not in listed and _decides(listed, _RANGES_OF_PROBLEM)


def _decides(listed: dict[str, bool], ranges: tuple[str, ...]) -> bool:
    return next((listed[name] for name in ranges if name in listed), False)
