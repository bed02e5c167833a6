"""Sending webhooks, to addresses that anybody may have chosen.

Where the bytes go is decided when the socket is made: that alone sees every address that is about
to be connected to, whether it was written in the URL or a name led there this time.
"""

import asyncio
import errno
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.typedefs import LooseHeaders

from service.domain.webhook_addresses import Networks, may_connect
from service.domain.webhook_deliveries import AttemptError, Outcome

CONNECT_SECONDS: Final = 3.0
TOTAL_SECONDS: Final = 15.0
MOST_READ: Final = 1024
"""Bytes of an answer's body, so that its connection can be used again. None is kept."""
_READING_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 4.0
"""How long a connection is kept: many servers close theirs after five seconds."""


class AddressNotAllowed(OSError):
    """A connection to an address that is neither public nor the company's own."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "the address is not allowed")


class Resolver(AbstractResolver):
    """Looks names up in a thread each, which ends with the process.

    The event loop's few threads, with which the way to PostgreSQL is found too, would soon all wait
    for name servers that do not answer.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def settle(result: list[ResolveResult] | OSError) -> None:
            if found.done():  # the attempt is over
                return
            if isinstance(result, OSError):
                found.set_exception(result)
            else:
                found.set_result(result)

        def look_up() -> None:
            result = _addresses_of(host, port, family)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, result)

        threading.Thread(target=look_up, name="webhook-dns", daemon=True).start()
        return await found

    async def close(self) -> None:
        """Nothing is kept."""


def _addresses_of(
    host: str, port: int, family: socket.AddressFamily
) -> list[ResolveResult] | OSError:
    try:
        infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label that is too long
        return error if isinstance(error, OSError) else socket.gaierror(str(error))
    return [
        ResolveResult(
            hostname=host,
            host=str(address[0]),
            port=port,
            family=kind,
            proto=protocol,
            flags=socket.AI_NUMERICHOST,
        )
        for kind, _, protocol, _, address in infos
    ]


class WebhookSender:
    """Makes attempts. Keeps no cookies, follows no redirects, uses no proxy."""

    def __init__(
        self, encrypted: aiohttp.ClientSession, unencrypted: aiohttp.ClientSession
    ) -> None:
        self._encrypted = encrypted
        self._unencrypted = unencrypted

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
        """Make an attempt; whatever goes wrong is its outcome."""
        began = time.monotonic()
        status = error = retry_after = None
        try:
            status, retry_after = await self._exchange(url, body, headers)
        except TimeoutError:
            error = AttemptError.TIMEOUT
        # ValueError: a URL or a header that only a laxer parser has accepted.
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            error = _error_of(failure)
        return Outcome(
            status=status,
            error=error,
            milliseconds=round((time.monotonic() - began) * 1000),
            retry_after=retry_after,
        )

    async def _exchange(
        self, url: str, body: bytes, headers: LooseHeaders
    ) -> tuple[int, timedelta | None]:
        session = self._encrypted if url[:6].lower() == "https:" else self._unencrypted
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            # It has answered; how it ends is of no interest.
            with suppress(aiohttp.ClientError, OSError):
                async with asyncio.timeout(_READING_SECONDS):
                    left = MOST_READ
                    while left > 0 and (chunk := await response.content.read(left)):
                        left -= len(chunk)
            return response.status, _retry_after(response.headers.get("Retry-After"))


def _error_of(failure: Exception) -> AttemptError:
    if isinstance(failure, aiohttp.ClientConnectorDNSError):
        return AttemptError.NAME_NOT_FOUND
    if isinstance(failure, aiohttp.ClientConnectorError) and isinstance(
        failure.os_error, AddressNotAllowed
    ):
        return AttemptError.ADDRESS_NOT_ALLOWED
    if isinstance(failure, aiohttp.ClientSSLError | ssl.SSLError):
        return AttemptError.TLS_FAILED
    if isinstance(failure, aiohttp.ClientResponseError):
        return AttemptError.NOT_HTTP
    return AttemptError.CONNECTION_FAILED


def _retry_after(value: str | None) -> timedelta | None:
    """Return what `Retry-After` asks for: seconds, or a date."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return timedelta(seconds=min(int(value[:9]), 10**6))
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)


@asynccontextmanager
async def open_webhook_sender(
    networks: Networks, resolver: AbstractResolver | None = None
) -> AsyncIterator[WebhookSender]:
    """Yield a sender to public addresses, and to `networks`, where it need not be https."""
    async with AsyncExitStack() as stack:
        encrypted, unencrypted = [
            await stack.enter_async_context(
                _session(networks, encrypted=encrypted, resolver=resolver)
            )
            for encrypted in (True, False)
        ]
        yield WebhookSender(encrypted, unencrypted)


def _session(
    networks: Networks, *, encrypted: bool, resolver: AbstractResolver | None
) -> aiohttp.ClientSession:
    def make_socket(info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        if not may_connect(str(address[0]), networks, encrypted=encrypted):
            raise AddressNotAllowed
        return socket.socket(family, kind, protocol)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            socket_factory=make_socket,
            resolver=resolver or Resolver(),
            limit=0,  # whoever calls has a limit
            keepalive_timeout=_IDLE_SECONDS,
        ),
        timeout=aiohttp.ClientTimeout(total=TOTAL_SECONDS, connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        read_bufsize=MOST_READ,
        headers={"User-Agent": "referrals/1", "Accept-Encoding": "identity"},
    )
