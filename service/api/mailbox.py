"""The local mailbox at /dev/mailbox: the mails of `make run`, for developers to read.

It holds tokens that set passwords, so it answers this machine alone: a request from loopback, not
forwarded from elsewhere, to a name that no web page can point at loopback (DNS rebinding).
"""

import asyncio
import email
import re
import secrets
from email.policy import default
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web

from service.api.http.app_keys import SETTINGS
from service.api.http.client_address import is_loopback
from service.api.http.pages import render
from service.api.http.prebuilt import PrebuiltResponse
from service.api.http.responses import to_json
from service.domain.errors import NotAllowed

PATH: Final = "/dev/mailbox"
NEWEST: Final = 50
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST: Final = re.compile(
    r"(?:\[([0-9a-f:.]+)\]|([^\[\]:/@?#\s]+?)\.?)(?::\d{1,5})?", re.IGNORECASE
)


async def show_mailbox(request: web.Request) -> web.Response:
    """GET /dev/mailbox: the newest mails, as a page, or as JSON for scripts."""
    if not (_is_from_this_machine(request) and _is_for_this_machine(request)):
        raise NotAllowed("The mailbox is only shown on the machine that the service runs on.")
    mail = request.app[SETTINGS].mail
    assert mail is not None
    assert isinstance(mail.delivery, Path)
    mails = await asyncio.to_thread(_read, mail.delivery)
    if request.headers.get("Accept", "").startswith("application/json"):
        return PrebuiltResponse(to_json({"items": mails}))
    nonce = secrets.token_urlsafe(16)
    return web.Response(
        text=render("mailbox.html", nonce=nonce, mails=mails),
        content_type="text/html",
        headers={
            "Content-Security-Policy": f"default-src 'none'; style-src 'nonce-{nonce}'; "
            "frame-ancestors 'none'; base-uri 'none'",
            "Cache-Control": "no-store",
        },
    )


def _is_from_this_machine(request: web.Request) -> bool:
    """Whether the peer, and every client it claims to forward for, is on loopback."""
    headers = request.headers
    forwarded = [
        address
        for name in ("X-Forwarded-For", "X-Real-IP")
        for value in headers.getall(name, ())
        for address in value.split(",")
    ]
    return "Forwarded" not in headers and all(
        is_loopback(address) for address in (request.remote or "", *forwarded)
    )


def _is_for_this_machine(request: web.Request) -> bool:
    """Whether `Host` names loopback or is the service's own public name."""
    named = _HOST.fullmatch(request.headers.get("Host", ""))
    if named is None:
        return False
    public = urlsplit(request.app[SETTINGS].public_url).hostname
    return (named[1] or named[2]).lower() in {*_LOOPBACK_NAMES, public}


def _read(folder: Path) -> list[dict[str, Any]]:
    # Job ids begin with the time: the newest mail has the last name.
    files = sorted(folder.glob("*.eml"), reverse=True)[:NEWEST]
    return [_describe(file.read_bytes()) for file in files]


def _describe(raw: bytes) -> dict[str, Any]:
    message = email.message_from_bytes(raw, policy=default)
    text = message.get_body(("plain",))
    return {
        "to": str(message["To"]),
        "subject": str(message["Subject"]),
        "date": str(message["Date"]),
        "text": text.get_content() if text else "",
    }


MAILBOX_ROUTES: Final = [web.get(PATH, show_mailbox)]
