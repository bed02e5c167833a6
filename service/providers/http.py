"""Calls to services outside: short, small, to where the settings say, and nowhere else."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import aiohttp

from service.domain.errors import ProviderUnavailable
from service.providers.circuit_breaker import CircuitBreaker
from service.telemetry.metrics import PROVIDER_CALLS

TOTAL_SECONDS: Final = 3.0
LARGEST_ANSWER: Final = 64 * 1024
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: `document` is whatever JSON the other side has sent, None if it need not have."""

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
        self._breakers: dict[str, CircuitBreaker] = {}

    async def call(self, provider: str, method: str, url: str, **options: Any) -> Reply:
        """Return the answer below 500; raise ProviderUnavailable if it is not JSON.

        A 202 may be empty, and a refusal is what its status says. `provider` is what the call is
        counted under. Errors name neither the answer nor what was sent: both hold secrets.
        """
        if provider not in self._breakers:
            self._breakers[provider] = CircuitBreaker(provider)
        with self._breakers[provider].watching():
            return await self._call(provider, method, url, **options)

    async def _call(self, provider: str, method: str, url: str, **options: Any) -> Reply:
        try:
            status, body = await self._exchange(method, url, **options)
            reply = Reply(status, _read(body, status))
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


def _read(body: bytes, status: int) -> Any:
    """Return the JSON; None where the status alone says enough; raise ValueError."""
    try:
        return json.loads(body)
    except ValueError:
        if status >= HTTPStatus.BAD_REQUEST or (status == HTTPStatus.ACCEPTED and not body):
            return None
        raise


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
        # aiohttp would repeat a GET by itself, and some calls are paid for.
        session._retry_connection = False  # noqa: SLF001  # there is no public way
        yield HttpClient(session)
