"""The stand-ins as a program: `python -m tests.stand_ins`, for a demonstration without a network.

The mails that were sent are on a page of their own.
"""

import argparse
import asyncio
import html
import re
import signal
from contextlib import AsyncExitStack

from aiohttp import web

from tests.stand_ins.clearbit import Clearbit
from tests.stand_ins.hunter import TEST_KEY, Hunter
from tests.stand_ins.smtp import Mail, SmtpServer
from tests.stand_ins.webhooks import Got, Receiver


async def run(options: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    hunter, clearbit = Hunter(options.hunter_key), Clearbit(options.clearbit_key)
    smtp = SmtpServer()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(hunter.serving(options.host, options.hunter_port))
        await stack.enter_async_context(clearbit.serving(options.host, options.clearbit_port))
        await stack.enter_async_context(smtp.serving(options.host, options.smtp_port))
        page = web.AppRunner(mailbox(smtp), access_log=None, shutdown_timeout=0.1)
        await page.setup()
        stack.push_async_callback(page.cleanup)
        await web.TCPSite(page, options.host, options.mailbox_port).start()
        receiver = Receiver(options.webhook_secret)
        receiver.when_got = lambda got: print(described(got, receiver.secret), flush=True)
        await stack.enter_async_context(receiver.serving(options.host, options.webhook_port))
        mails = f"http://{options.host}:{page.addresses[0][1]}/"
        print(
            f"Hunter {hunter.url}  Clearbit {clearbit.url}  {smtp.url}  mails {mails}  "
            f"webhooks {receiver.url}",
            flush=True,
        )
        await stop.wait()


def mailbox(smtp: SmtpServer) -> web.Application:
    """A page with the mails, the newest first."""

    async def page(request: web.Request) -> web.Response:
        shown = "".join(article(mail) for mail in reversed(smtp.mails)) or "<p>No mails yet."
        return web.Response(
            text=f"<!doctype html><title>Mails</title><h1>Mails</h1>{shown}",
            content_type="text/html",
            headers={"Content-Security-Policy": "default-src 'none'"},
        )

    app = web.Application()
    app.router.add_get("/", page)
    return app


def article(mail: Mail) -> str:
    subject = html.escape(str(mail.message["Subject"]))
    recipients = html.escape(", ".join(mail.rcpt_tos))
    text = re.sub(r"(https?://[^\s<]+)", r'<a href="\1">\1</a>', html.escape(mail.text))
    return f"<article><h2>{subject}</h2><p>to {recipients}<pre>{text}</pre></article>"


def described(got: Got, secret: str | None) -> str:
    """Return a line about a webhook."""
    verdict = "not verified, without --webhook-secret"
    if secret is not None:
        verdict = "verified" if got.verified_by(secret) else "FORGED, or another secret's: refused"
    message_id = got.headers.get("webhook-id", "without an id")
    return f"webhook {message_id} {verdict}: {got.body.decode(errors='replace')}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stand_ins", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--hunter-port", type=int, default=8091)
    parser.add_argument("--hunter-key", default=TEST_KEY)
    parser.add_argument("--clearbit-port", type=int, default=8092)
    parser.add_argument("--clearbit-key", default="demo")
    parser.add_argument("--smtp-port", type=int, default=8025)
    parser.add_argument("--mailbox-port", type=int, default=8093)
    parser.add_argument("--webhook-port", type=int, default=8094)
    parser.add_argument("--webhook-secret", help="whsec_…: what it has not signed is refused")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
