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
from service.settings.settings import MailSettings, SmtpSettings
from service.telemetry.metrics import PROVIDER_CALLS

TOTAL_SECONDS: Final = 10.0
"""For a whole conversation with the mail server, whose greeting alone may take a while."""
_PROVIDER: Final = "smtp"
_OURS: Final = (
    aiosmtplib.SMTPAuthenticationError,
    aiosmtplib.SMTPConnectError,
    aiosmtplib.SMTPHeloError,
    aiosmtplib.SMTPSenderRefused,
)
_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}
log = logging.getLogger(__name__)


class Mailer:
    """Writes mails and delivers them."""

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
        """Deliver the mail.

        The same `message_id` for each try lets mail programs show a mail once that was sent twice.
        Raises ProviderUnavailable, or PermanentFailure where the server rejects it for good, or
        it cannot be written.
        """
        try:
            message = self._write(mail, to, message_id)
        except Exception as error:  # whatever keeps it from being written does so each time
            raise PermanentFailure(f"the mail cannot be written: {type(error).__name__}") from error
        await self._deliver(message)

    def _write(self, mail: Mail, to: Email, message_id: str) -> EmailMessage:
        message = EmailMessage()
        message["From"] = Address(self._service_name, addr_spec=self._sender)
        message["To"] = Address(addr_spec=to.mailbox)
        message["Subject"] = mail.subject
        message["Date"] = localtime()
        message["Message-ID"] = f"<{message_id}@{self._sender.partition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no answers from machines
        message.set_content(self._render("mail.txt", mail))
        message.add_alternative(self._render("mail.html", mail), subtype="html")
        return message

    def _render(self, template: str, mail: Mail) -> str:
        return self._templates.get_template(template).render(
            mail=mail, service_name=self._service_name
        )


class _Smtp:
    """A conversation for each mail (RFC 5321)."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings
        self._breaker = CircuitBreaker(_PROVIDER)
        # A password never travels in the clear, except to this machine.
        secret = settings.user is not None and settings.host not in _LOOPBACK
        self._start_tls = True if secret and not settings.implicit_tls else None

    async def deliver(self, message: EmailMessage) -> None:
        with self._breaker.watching():
            try:
                async with asyncio.timeout(TOTAL_SECONDS):
                    await aiosmtplib.send(
                        message,
                        hostname=self._settings.host,
                        port=self._settings.port,
                        username=self._settings.user,
                        password=self._settings.password,
                        use_tls=self._settings.implicit_tls,
                        start_tls=False if self._settings.implicit_tls else self._start_tls,
                        timeout=TOTAL_SECONDS,
                    )
            except (OSError, ValueError, aiosmtplib.SMTPException) as error:
                reason = _reason(error)
                PROVIDER_CALLS.labels(_PROVIDER, "refused" if _is_final(error) else "failed").inc()
                log.warning("a mail was not taken: %s", reason)
                if not _is_final(error):
                    raise ProviderUnavailable(reason) from error
                permanent = PermanentFailure(reason)
            else:
                PROVIDER_CALLS.labels(_PROVIDER, "ok").inc()
                return
        raise permanent


def _codes(error: Exception) -> list[int]:
    """Return the reply codes that the server gave."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return [recipient.code for recipient in error.recipients]
    return [error.code] if isinstance(error, aiosmtplib.SMTPResponseException) else []


def _is_final(error: Exception) -> bool:
    """Whether the server has refused this mail for good: not us, which operators mend.

    A server that wants a password or TLS first says so (530) when it hears the sender.
    """
    codes = _codes(error)
    ours = isinstance(error, _OURS)
    return bool(codes) and not ours and all(500 <= code < 600 for code in codes)


def _reason(error: Exception) -> str:
    """Return what to log: never the server's words, which quote addresses."""
    return " ".join([type(error).__name__, *map(str, _codes(error))])


class _Mailbox:
    """A folder with a file for each mail, which only the user of the process may read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._make_folder()
        for written in filter(Path.is_file, folder.iterdir()):
            with suppress(FileNotFoundError):  # another process has just given it its name
                written.chmod(0o600)  # a version before this one left them to everyone

    async def deliver(self, message: EmailMessage) -> None:
        await asyncio.to_thread(self._write, message)

    def _write(self, message: EmailMessage) -> None:
        self._make_folder()
        name = message["Message-ID"].strip("<>").partition("@")[0]
        written = self._folder / f"{name}.eml"
        unfinished = written.with_suffix(".tmp")
        unfinished.unlink(missing_ok=True)  # its mode would stay
        unfinished.touch(mode=0o600)
        unfinished.write_bytes(message.as_bytes())
        unfinished.replace(written)  # whole or not at all

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
