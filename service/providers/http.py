"""Calls to services outside: short, small, to where the settings say, and nowhere else."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from service.domain.errors import ProviderUnavailable
from service.metrics import PROVIDER_CALLS

TOTAL_SECONDS: Final = 3.0
LARGEST_ANSWER: Final = 64 * 1024
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in JSON: `document` is whatever the other side has sent."""

    status: int
    document: Any

    def text(self, name: str, longest: int) -> str | None:
        """Return the member of that name if it is a text that can be stored, else None."""
        value = self.document.get(name) if isinstance(self.document, dict) else None
        return value if is_text(value, longest) else None


def is_text(value: object, longest: int) -> bool:
    """Whether a value from outside is a text, not empty, that PostgreSQL and a header can hold."""
    return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()


class HttpClient:
    """The one client session of a process, which keeps no cookies and follows no redirects."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def call(self, provider: str, method: str, url: str, **options: Any) -> Reply:
        """Return the answer below 500, if it is JSON; else raise ProviderUnavailable.

        `provider` is what the call is counted under. Errors name neither the answer nor what
        was sent: both hold secrets.
        """
        try:
            status, body = await self._exchange(method, url, **options)
            reply = Reply(status, json.loads(body))
        # ValueError: not JSON, or not UTF-8; RecursionError: brackets without end.
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            PROVIDER_CALLS.labels(provider, "failed").inc()
            log.warning("a call to %s failed: %s", provider, type(error).__name__)
            raise ProviderUnavailable from error
        result = "ok" if reply.status < 300 else "refused"
        PROVIDER_CALLS.labels(provider, result).inc()
        return reply

    async def _exchange(self, method: str, url: str, **options: Any) -> tuple[int, bytes]:
        async with self._session.request(method, url, allow_redirects=False, **options) as response:
            if 300 <= response.status < 400 or response.status >= 500:
                raise ValueError("a redirect, or a failure")
            body = bytearray()
            async for chunk in response.content.iter_chunked(8192):
                body += chunk
                if len(body) > LARGEST_ANSWER:
                    raise ValueError("too large an answer")
            return response.status, bytes(body)


@asynccontextmanager
async def open_http_client() -> AsyncIterator[HttpClient]:
    """Yield the client, open until the block ends."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=TOTAL_SECONDS),
        auto_decompress=False,  # nothing small becomes large here
        cookie_jar=aiohttp.DummyCookieJar(),  # one user's must not reach another's request
        headers={
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "referrals",
        },
    ) as session:
        yield HttpClient(session)
