"""The headers that every answer has."""

from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import web
from multidict import istr

from service.api.http.app_keys import Context
from service.api.http.prebuilt import PrebuiltResponse
from service.redis.rate_limits import Window

# istr: a name that aiohttp need not fold to lower case for each answer.
_EVERY_ANSWER: Final = {
    istr("Server"): "referrals",  # otherwise aiohttp names itself, Python and their versions
    istr("X-Content-Type-Options"): "nosniff",
    istr("X-Frame-Options"): "DENY",
    istr("Referrer-Policy"): "no-referrer",
    istr("Cache-Control"): "no-store",
    istr("Content-Security-Policy"): "default-src 'none'; frame-ancestors 'none'",
}
_HTTPS: Final = {istr("Strict-Transport-Security"): "max-age=63072000"}
_X_REQUEST_ID: Final = istr("X-Request-Id")
_RATE_LIMIT_POLICY: Final = istr("RateLimit-Policy")
_RATE_LIMIT: Final = istr("RateLimit")


class Headers:
    """Adds the headers to answers, each of which may have some of its own, such as a policy."""

    def __init__(self, *, https: bool) -> None:
        self._same = _EVERY_ANSWER | (_HTTPS if https else {})
        self._lines = _lines(self._same)

    def add(self, request: web.BaseRequest, response: web.StreamResponse, context: Context) -> None:
        own = {_X_REQUEST_ID: context.request_id}
        if context.windows:
            own[_RATE_LIMIT_POLICY], own[_RATE_LIMIT] = _rate_limit(context.windows)
        if type(response) is PrebuiltResponse and response.is_usual(request):
            lines = self._lines
            for name, value in own.items():
                lines += f"{name}: {value}\r\n"
            response.build_head(lines)
        else:
            for name, value in (self._same | own).items():
                response.headers.setdefault(name, value)


def _lines(headers: Mapping[istr, str]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])


def _rate_limit(windows: Sequence[Window]) -> tuple[str, str]:
    """Return RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-10)."""
    policies = states = comma = ""
    for window in windows:
        limit = window.limit
        policies += f'{comma}"{window.name}";q={limit.requests};w={limit.seconds}'
        states += f'{comma}"{window.name}";r={window.remaining};t={window.reset}'
        comma = ", "
    return policies, states
