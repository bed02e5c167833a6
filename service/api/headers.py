"""The headers that every answer has."""

from collections.abc import MutableMapping
from typing import Final

_EVERY_ANSWER: Final = {
    "Server": "referrals",  # else aiohttp names itself, Python and their versions
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
_UNLESS_THE_HANDLER_SETS_IT: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def add_headers_of_every_answer(headers: MutableMapping[str, str], request_id: str) -> None:
    """Add them; what says more about its own answer, a page's policy say, stays."""
    headers["X-Request-Id"] = request_id
    headers.update(_EVERY_ANSWER)
    for name, value in _UNLESS_THE_HANDLER_SETS_IT.items():
        headers.setdefault(name, value)
