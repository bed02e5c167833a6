"""Calls to outside services: short, small, and only to where the settings say."""

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
_MAY_BE_EMPTY: Final = {HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT}
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `document` is any JSON, or None if there is none."""

    status: int
    document: Any

    def member(self, name: str) -> Any:
        """Return the member of that name, None if there is none."""
        return self.document.get(name) if isinstance(self.document, dict) else None

    def text(self, name: str, longest: int) -> str | None:
        """Return the member of that name if it is a text that can be stored, else None."""
        value = self.member(name)
        return value if is_text(value, longest) else None


def is_text(value: object, longest: int) -> bool:
    """Whether the value is a non-empty string that PostgreSQL and a header can hold."""
    return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()


class HttpClient:
    """The only client session of a process. It keeps no cookies and follows no redirects."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._breakers: dict[str, CircuitBreaker] = {}

    async def call(self, provider: str, method: str, url: str, **options: Any) -> Reply:
        """Return an answer below 500; raise ProviderUnavailable if a success is not JSON.

        A 202 or a 204 may be empty. Calls are counted under `provider`, which has a circuit
        breaker. Errors and logs name neither the answer nor what was sent: both hold secrets.
        """
        if provider not in self._breakers:
            self._breakers[provider] = CircuitBreaker(provider)
        with self._breakers[provider].watching():
            try:
                reply = await self._exchange(method, url, **options)
            # ValueError: not JSON, or not UTF-8; RecursionError: endless brackets.
            except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
                PROVIDER_CALLS.labels(provider, "failed").inc()
                log.warning("a call to %s failed: %s", provider, type(error).__name__)
                raise ProviderUnavailable from error
        PROVIDER_CALLS.labels(provider, "ok" if reply.status < 300 else "refused").inc()
        return reply

    async def _exchange(self, method: str, url: str, **options: Any) -> Reply:
        async with self._session.request(method, url, allow_redirects=False, **options) as response:
            if 300 <= response.status < 400 or response.status >= 500:
                raise ValueError("a redirect, or a failure")
            body = bytearray()
            async for chunk in response.content.iter_chunked(8192):
                body += chunk
                if len(body) > LARGEST_ANSWER:
                    raise ValueError("too large an answer")
            return Reply(response.status, _read(response.status, body))


def _read(status: int, body: bytearray) -> Any:
    """Return the JSON, or None where the status alone says enough; raise ValueError."""
    if not body and status in _MAY_BE_EMPTY:
        return None
    try:
        return json.loads(body)
    except ValueError:
        if status >= HTTPStatus.BAD_REQUEST:
            return None
        raise


@asynccontextmanager
async def open_http_client() -> AsyncIterator[HttpClient]:
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
        # aiohttp would retry a GET, and some calls are paid for.
        session._retry_connection = False  # noqa: SLF001  # there is no public way
        yield HttpClient(session)
