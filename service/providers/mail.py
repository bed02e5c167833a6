"""Sending mail: by SMTP, or into a folder where developers read it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import localtime
from pathlib import Path
from typing import Final

import aiosmtplib
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from service.domain.emails import Email
from service.domain.errors import ProviderUnavailable
from service.domain.jobs import PermanentFailure
from service.domain.mails import Mail
from service.providers.circuit_breaker import CircuitBreaker
from service.providers.settings import MailSettings, SmtpSettings
from service.telemetry.metrics import PROVIDER_CALLS

TOTAL_SECONDS: Final = 10.0
"""For a whole conversation with the mail server, whose greeting alone may take a while."""
_PROVIDER: Final = "smtp"
# What is wrong with us rather than with the mail, which operators fix.
_OURS: Final = (
    aiosmtplib.SMTPAuthenticationError,
    aiosmtplib.SMTPConnectError,
    aiosmtplib.SMTPHeloError,
    aiosmtplib.SMTPSenderRefused,
)
_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}
log = logging.getLogger(__name__)


class Mailer:
    """Renders mails and delivers them."""

    def __init__(self, settings: MailSettings, service_name: str) -> None:
        self._sender = settings.sender
        self._service_name = service_name
        self._deliver: Callable[[EmailMessage], Awaitable[None]] = (
            _Smtp(settings.delivery).deliver
            if isinstance(settings.delivery, SmtpSettings)
            else _Mailbox(settings.delivery).deliver
        )
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=select_autoescape(),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
        )

    async def send(self, mail: Mail, to: Email, message_id: str) -> None:
        """Deliver the mail; raise ProviderUnavailable or PermanentFailure.

        With the same `message_id` for each try, mail programs show a mail once that was sent twice.
        """
        try:
            message = self._write(mail, to, message_id)
        except Exception as error:  # each try would fail like this one
            raise PermanentFailure(f"the mail cannot be written: {type(error).__name__}") from error
        await self._deliver(message)

    def _write(self, mail: Mail, to: Email, message_id: str) -> EmailMessage:
        message = EmailMessage()
        message["From"] = Address(self._service_name, addr_spec=self._sender)
        message["To"] = Address(addr_spec=to.mailbox)
        message["Subject"] = mail.subject
        message["Date"] = localtime()
        message["Message-ID"] = f"<{message_id}@{self._sender.partition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no auto-replies
        message.set_content(self._render("mail.txt", mail))
        message.add_alternative(self._render("mail.html", mail), subtype="html")
        return message

    def _render(self, template: str, mail: Mail) -> str:
        return self._templates.get_template(template).render(
            mail=mail, service_name=self._service_name
        )


class _Smtp:
    """One conversation a mail (RFC 5321)."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings
        self._breaker = CircuitBreaker(_PROVIDER)
        # A password never travels in the clear, except to this machine.
        secret = settings.user is not None and settings.host not in _LOOPBACK
        self._start_tls = False if settings.implicit_tls else secret or None

    async def deliver(self, message: EmailMessage) -> None:
        with self._breaker.watching():
            refusal = await self._send(message)
        if refusal:
            raise PermanentFailure(refusal)

    async def _send(self, message: EmailMessage) -> str | None:
        """Return why the mail is refused for good, None if it is not.

        Raises ProviderUnavailable. Reasons never hold the server's words, which quote addresses.
        """
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                await aiosmtplib.send(
                    message,
                    hostname=self._settings.host,
                    port=self._settings.port,
                    username=self._settings.user,
                    password=self._settings.password,
                    use_tls=self._settings.implicit_tls,
                    start_tls=self._start_tls,
                    timeout=TOTAL_SECONDS,
                )
        except (OSError, ValueError, aiosmtplib.SMTPException) as error:
            codes = _codes(error)
            reason = " ".join([type(error).__name__, *map(str, codes)])
            log.warning("the mail server did not accept a mail: %s", reason)
            # A server that wants a password or TLS first says so (530) when it hears the sender.
            final = codes and not isinstance(error, _OURS) and all(500 <= c < 600 for c in codes)
            PROVIDER_CALLS.labels(_PROVIDER, "refused" if final else "failed").inc()
            if final:
                return reason
            raise ProviderUnavailable(reason) from error
        PROVIDER_CALLS.labels(_PROVIDER, "ok").inc()
        return None


def _codes(error: Exception) -> list[int]:
    """Return the reply codes that the server gave."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return [recipient.code for recipient in error.recipients]
    return [error.code] if isinstance(error, aiosmtplib.SMTPResponseException) else []


class _Mailbox:
    """A folder with a file a mail, which only the user of the process may read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._make_folder()
        for written in filter(Path.is_file, folder.iterdir()):
            with suppress(FileNotFoundError):  # another process has just renamed it
                written.chmod(0o600)  # earlier versions left them readable to everyone

    async def deliver(self, message: EmailMessage) -> None:
        await asyncio.to_thread(self._write, message)

    def _write(self, message: EmailMessage) -> None:
        self._make_folder()
        name = message["Message-ID"].strip("<>").partition("@")[0]
        written = self._folder / f"{name}.eml"
        unfinished = written.with_suffix(".tmp")
        unfinished.unlink(missing_ok=True)  # or its mode would stay
        unfinished.touch(mode=0o600)
        unfinished.write_bytes(message.as_bytes())
        unfinished.replace(written)  # atomic

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
