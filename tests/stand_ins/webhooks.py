"""A company's receiver of webhooks: it verifies them, remembers them, and answers as it is told."""

import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from multidict import MultiMapping
from standardwebhooks import Webhook, WebhookVerificationError

from tests.stand_ins.hanging import Hanging


@dataclass(frozen=True)
class Got:
    """A webhook that has come, whatever it was answered."""

    headers: MultiMapping[str]
    body: bytes
    path: str
    document: Any
    at: float = field(default_factory=time.monotonic)

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]

    def verified_by(self, secret: str) -> bool:
        """Whether Standard Webhooks' own library takes it for genuine, and for new."""
        try:
            Webhook(secret).verify(self.body, dict(self.headers))
        except (WebhookVerificationError, ValueError):  # ValueError: no UTF-8, no base64
            return False
        return True


class Receiver(Hanging):
    """Answers `status`, or what `script` has next; 401 what `secret` has not signed, if set."""

    def __init__(self, secret: str | None = None) -> None:
        super().__init__()
        self.secret = secret
        self.status = 204
        self.script: list[int] = []
        self.headers: Mapping[str, str] = {}
        self.answer_body = b""
        self.got: list[Got] = []
        self.refused = 0
        self.url = ""
        self.when_got: Callable[[Got], None] | None = None

    @asynccontextmanager
    async def serving(
        self, host: str = "127.0.0.1", port: int = 0, context: ssl.SSLContext | None = None
    ) -> AsyncIterator[Self]:
        """Serve at `url`, on a free port unless one is named, until the block ends."""
        server = web.Server(self._handle, handler_cancellation=True)  # type: ignore[arg-type]
        runner = web.ServerRunner(server, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, ssl_context=context).start()
            scheme = "http" if context is None else "https"
            self.url = f"{scheme}://{host}:{runner.addresses[0][1]}/hook"
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        got = Got(request.headers, body, request.path, await _document(request))
        self.got.append(got)
        if self.when_got is not None:
            self.when_got(got)
        await self.wait_while_hanging()
        if self.secret is not None and not got.verified_by(self.secret):
            self.refused += 1
            return web.Response(status=401)
        status = self.script.pop(0) if self.script else self.status
        return web.Response(status=status, headers=self.headers, body=self.answer_body)

    def has_got(self, number: int) -> bool:
        return len(self.got) >= number

    @property
    def types(self) -> list[str]:
        return [got.document["type"] for got in self.got]


async def _document(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError:
        return None
