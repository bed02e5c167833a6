"""The headers that every answer has."""

from collections.abc import Sequence
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


class Headers:
    """Adds the headers to answers, each of which may have some of its own, such as a policy."""

    def __init__(self, *, https: bool) -> None:
        self._same = _EVERY_ANSWER | (_HTTPS if https else {})
        self._lines = "".join([f"{name}: {value}\r\n" for name, value in self._same.items()])

    def add(self, request: web.BaseRequest, response: web.StreamResponse, context: Context) -> None:
        policy, state = _rate_limit(context.windows)
        if type(response) is PrebuiltResponse:
            lines = f"{self._lines}X-Request-Id: {context.request_id}\r\n"
            if policy:
                lines += f"RateLimit-Policy: {policy}\r\nRateLimit: {state}\r\n"
            if response.build_head(request, lines):
                return
        own = {"X-Request-Id": context.request_id}
        if policy:
            own |= {"RateLimit-Policy": policy, "RateLimit": state}
        for name, value in (self._same | own).items():
            response.headers.setdefault(name, value)


def _rate_limit(windows: Sequence[Window]) -> tuple[str, str]:
    """Return RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-10)."""
    policy = state = ""
    for each in windows:
        policy += f', "{each.name}";q={each.limit.requests};w={each.limit.seconds}'
        state += f', "{each.name}";r={each.remaining};t={each.reset}'
    return policy[2:], state[2:]
