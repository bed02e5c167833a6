"""The headers that every answer has."""

from typing import Final

from multidict import CIMultiDict, istr

_X_REQUEST_ID: Final = istr("X-Request-Id")
# istr: a name that aiohttp need not fold to lower case for each answer.
_EVERY_ANSWER: Final = {
    istr("Server"): "referrals",  # else aiohttp names itself, Python and their versions
    istr("X-Content-Type-Options"): "nosniff",
    istr("X-Frame-Options"): "DENY",
    istr("Referrer-Policy"): "no-referrer",
}
_HTTPS: Final = {istr("Strict-Transport-Security"): "max-age=63072000"}
_CACHE_CONTROL: Final = istr("Cache-Control")
_CONTENT_SECURITY_POLICY: Final = istr("Content-Security-Policy")


def lines_of_every_answer(*, https: bool) -> str:
    """Return the headers as they are sent, for an answer that sets none of them itself."""
    headers: CIMultiDict[str] = CIMultiDict()
    add_headers_of_every_answer(headers, "", https=https)
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)


def add_headers_of_every_answer(
    headers: CIMultiDict[str], request_id: str, *, https: bool = False
) -> None:
    """Add them; what says more about its own answer, a page's policy say, stays."""
    headers[_X_REQUEST_ID] = request_id
    headers.update(_EVERY_ANSWER)
    if https:
        headers.update(_HTTPS)
    headers.setdefault(_CACHE_CONTROL, "no-store")
    headers.setdefault(_CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'")
