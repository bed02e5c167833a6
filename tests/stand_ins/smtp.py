"""An SMTP server that keeps what it receives, and does to its clients what a script says.

    smtp.play(refuse("450 4.2.1 Try again later"), accept)
    smtp.play(hang(Stage.GREETING))
    [mail] = await smtp.wait_for(1)

A script is a sequence of steps: a connection takes one when it is made, for its first message, and
another one for each further message; the last one stays for ever.
"""

import asyncio
import email
import logging
import re
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from email import policy
from email.message import EmailMessage
from enum import Enum, auto
from pathlib import Path
from typing import Any, Literal, Self

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.stand_ins.certificate import write_certificate
from tests.stand_ins.hanging import Hanging

# It logs addresses and mails, which the tests look for in the logs of the service.
logging.getLogger("mail.log").setLevel(logging.ERROR)


class Stage(Enum):
    """Where in a conversation something happens."""

    GREETING = auto()
    AUTH = auto()
    RECIPIENT = auto()
    DATA = auto()  # a refusal instead of 354, anything else behind the first line of the message
    END = auto()  # the message is there, the client waits for 250


@dataclass(frozen=True)
class Step:
    """What becomes of a message; without a stage it is accepted."""

    at: Stage | None = None
    reply: str | None = None
    hangs: bool = False
    stores: bool = False


accept = Step()
stored_then_dropped = Step(Stage.END, stores=True)
"""The mail is kept, and its sender does not hear of it."""
stored_then_hung = Step(Stage.END, hangs=True, stores=True)


def refuse(reply: str, at: Stage = Stage.RECIPIENT) -> Step:
    """A refusal, like `450 4.2.1 Try again later`; 421 closes the connection, too."""
    return Step(at, reply=reply)


def hang(at: Stage = Stage.GREETING) -> Step:
    """Not a word from there on, until the server releases."""
    return Step(at, hangs=True)


def drop(at: Stage = Stage.DATA) -> Step:
    """The connection ends there."""
    return Step(at)


@dataclass(frozen=True)
class Mail:
    """A message that was received, with its envelope."""

    mail_from: str
    rcpt_tos: tuple[str, ...]
    message: EmailMessage
    tls: bool
    login: str | None
    at: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        return self._body("plain")

    @property
    def html(self) -> str:
        return self._body("html")

    @property
    def links(self) -> list[str]:
        """The addresses in the plain text."""
        return re.findall(r"https?://[^\s<>\"]+", self.text)

    def _body(self, kind: Literal["plain", "html"]) -> str:
        part = self.message.get_body((kind,))
        return "" if part is None else str(part.get_content()).replace("\r\n", "\n")


class SmtpServer(Hanging):
    """The server. `credentials` are then required; `tls` is required where it is given."""

    def __init__(
        self,
        *,
        credentials: tuple[str, str] | None = None,
        tls: Literal["starttls", "implicit"] | None = None,
    ) -> None:
        super().__init__()
        self.credentials = credentials
        self.tls = tls
        self.host, self.port = "", 0
        self.certificate: Path | None = None
        self.mails: list[Mail] = []
        self.connections = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._steps: list[Step] = []
        self._arrived = asyncio.Event()
        self._held: set[Connection] = set()

    @property
    def url(self) -> str:
        scheme = "smtps" if self.tls == "implicit" else "smtp"
        return f"{scheme}://{self.host}:{self.port}"

    def play(self, *steps: Step) -> None:
        """Do so from now on."""
        self._steps = list(steps)

    def next_step(self) -> Step:
        steps = self._steps or [accept]
        return steps.pop(0) if len(steps) > 1 else steps[0]

    def mails_to(self, address: str) -> list[Mail]:
        return [mail for mail in self.mails if address in mail.rcpt_tos]

    async def wait_for(self, count: int, timeout: float = 5) -> list[Mail]:  # noqa: ASYNC109
        """Return the mails as soon as there are that many."""
        try:
            async with asyncio.timeout(timeout):
                while len(self.mails) < count:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"{len(self.mails)} of {count} mails have come") from None
        return list(self.mails)

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Self]:
        """Serve at `host` and `port`, a free one unless one is named, until the block ends."""
        loop = asyncio.get_running_loop()
        with self._context() as context:
            implicit = context if self.tls == "implicit" else None
            starttls = context if self.tls == "starttls" else None
            server = await loop.create_server(
                lambda: Connection(self, starttls), host, port, ssl=implicit
            )
            self.host, self.port = server.sockets[0].getsockname()[:2]
            try:
                yield self
            finally:
                server.close()
                await asyncio.gather(*(connection.end() for connection in self._held))
                await server.wait_closed()

    def keep(self, connection: "Connection", envelope: Envelope) -> None:
        assert isinstance(envelope.content, bytes)
        session = connection.session
        login = session.auth_data if session is not None else None
        transport = connection.transport
        self.mails.append(
            Mail(
                envelope.mail_from or "",
                tuple(envelope.rcpt_tos),
                email.message_from_bytes(envelope.content, policy=policy.default),
                tls=transport is not None and transport.get_extra_info("sslcontext") is not None,
                login=login.login.decode() if isinstance(login, LoginPassword) else None,
            )
        )
        self._arrived.set()

    def began(self, connection: "Connection") -> None:
        self._held.add(connection)
        self.connections += 1
        self.in_flight = len(self._held)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def ended(self, connection: "Connection") -> None:
        self._held.discard(connection)
        self.in_flight = len(self._held)

    @contextmanager
    def _context(self) -> Iterator[ssl.SSLContext | None]:
        if self.tls is None:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="smtp-") as folder:
            self.certificate, key = write_certificate(Path(folder))
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.certificate, key)
            yield context


class Handler:
    """What aiosmtpd tells of a message that is there."""

    async def handle_DATA(  # noqa: N802
        self, server: "Connection", session: Session, envelope: Envelope
    ) -> str:
        return await server.received(envelope)


class Connection(SMTP):
    """A conversation with a client."""

    def __init__(self, stand_in: SmtpServer, starttls: ssl.SSLContext | None) -> None:
        self._stand_in = stand_in
        self._step = stand_in.next_step()
        self._has_had_a_message = False
        super().__init__(
            Handler(),
            hostname="smtp.example",  # by default the resolver is asked, which blocks
            enable_SMTPUTF8=True,
            tls_context=starttls,
            require_starttls=starttls is not None,
            auth_require_tls=starttls is not None,
            authenticator=self._judge,
            loop=asyncio.get_running_loop(),
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._original_transport is None:  # else this is the same one, with TLS
            self._stand_in.began(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._stand_in.ended(self)
        super().connection_lost(error)

    async def end(self) -> None:
        """Close the connection, whatever it is at."""
        assert self._handler_coroutine is not None
        self._abort()
        self._handler_coroutine.cancel()
        await asyncio.wait([self._handler_coroutine])

    async def push(self, status: Any) -> None:
        await super().push(status)
        if str(status).startswith("421") and self.transport is not None:
            self.transport.close()

    async def _handle_client(self) -> None:
        # A client that goes away is no news.
        with suppress(ConnectionError):
            reply = await self._reply_at(Stage.GREETING)
            if reply is None:
                await super()._handle_client()
            else:
                await self.push(reply)
                self._writer.close()

    async def smtp_AUTH(self, arg: str) -> None:  # noqa: N802
        reply = await self._reply_at(Stage.AUTH)
        await (super().smtp_AUTH(arg) if reply is None else self.push(reply))

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802
        if self._has_had_a_message:
            self._step = self._stand_in.next_step()
        self._has_had_a_message = True
        assert self.session is not None
        # aiosmtpd's own check warns of a server without TLS.
        if self._stand_in.credentials is not None and not self.session.authenticated:
            await self.push("530 5.7.0 Authentication required")
        else:
            await super().smtp_MAIL(arg)

    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802
        reply = await self._reply_at(Stage.RECIPIENT)
        await (super().smtp_RCPT(arg) if reply is None else self.push(reply))

    async def smtp_DATA(self, arg: str) -> None:  # noqa: N802
        if self._step.at is not Stage.DATA:
            await super().smtp_DATA(arg)
        elif self._step.reply is not None:
            await self.push(self._step.reply)
        else:
            await self.push("354 End data with <CR><LF>.<CR><LF>")
            await self._reader.readline()
            await self._reply_at(Stage.DATA)
            await self._drop()

    async def received(self, envelope: Envelope) -> str:
        """Return the reply to a message that has come whole."""
        if self._step.stores:
            self._stand_in.keep(self, envelope)
        reply = await self._reply_at(Stage.END)
        if reply is None and not self._step.stores:
            self._stand_in.keep(self, envelope)
        return reply or "250 OK"

    async def _reply_at(self, stage: Stage) -> str | None:
        """Do what the step does at that stage; return its refusal, None to go on as usual."""
        await self._stand_in.wait_while_hanging()
        if self._step.at is not stage:
            return None
        if self._step.hangs:
            await self._stand_in.wait_for_release()
        elif self._step.reply is None:
            await self._drop()
        return self._step.reply

    async def _drop(self) -> None:
        self._abort()
        await asyncio.Event().wait()  # connection_lost cancels it

    def _abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.abort()

    def _judge(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, given: Any
    ) -> AuthResult:
        known = self._stand_in.credentials
        login, password = given.login.decode(), given.password.decode()
        is_right = known is None or (login, password) == known
        return AuthResult(success=is_right, handled=False, auth_data=given)
