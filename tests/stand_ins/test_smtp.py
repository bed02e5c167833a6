"""The SMTP server, driven by aiosmtplib; and the program that serves all stand-ins."""

import asyncio
import smtplib
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from email.message import EmailMessage
from typing import Any

import aiosmtplib
import pytest

from tests.e2e.processes import ROOT, free_port, started, wait_for
from tests.stand_ins.smtp import (
    SmtpServer,
    Stage,
    accept,
    drop,
    hang,
    refuse,
    stored_then_dropped,
    stored_then_hung,
)
from tests.waiting import until

LINK = "https://example.com/confirm?token=a-b_c"


def mail(subject: str = "Grüße") -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = "service@example.com", "anna@example.com"
    message["Subject"] = subject
    message.set_content(f"Bitte bestätigen: {LINK}\n.\nEnde\n")
    message.add_alternative("<p>Bitte bestätigen", subtype="html")
    return message


async def send(smtp: SmtpServer, seconds: float = 5, **options: Any) -> None:
    options = {"start_tls": False, **options}
    client = aiosmtplib.SMTP(hostname=smtp.host, port=smtp.port, timeout=seconds, **options)
    try:
        await client.connect()
        await client.send_message(mail())
    finally:
        client.close()


@pytest.fixture
async def smtp() -> AsyncIterator[SmtpServer]:
    async with SmtpServer().serving() as server:
        yield server


async def test_it_keeps_what_it_receives(smtp: SmtpServer) -> None:
    sending = asyncio.create_task(send(smtp))
    [received] = await smtp.wait_for(1)
    await sending
    assert received.mail_from == "service@example.com"
    assert received.rcpt_tos == ("anna@example.com",)
    assert received.message["Subject"] == "Grüße"
    assert received.text.splitlines() == [f"Bitte bestätigen: {LINK}", ".", "Ende"]
    assert received.html == "<p>Bitte bestätigen\n"
    assert received.links == [LINK]
    assert not received.tls
    assert smtp.mails_to("anna@example.com") == [received]
    assert smtp.mails_to("bert@example.com") == []
    assert smtp.url == f"smtp://127.0.0.1:{smtp.port}"


async def test_the_standard_librarys_client_is_served_too(smtp: SmtpServer) -> None:
    def deliver() -> None:
        with smtplib.SMTP(smtp.host, smtp.port, timeout=5) as client:
            client.send_message(mail("1"))
            client.send_message(mail("2"))

    await asyncio.to_thread(deliver)
    assert [received.message["Subject"] for received in smtp.mails] == ["1", "2"]
    assert smtp.connections == 1


async def test_mails_that_do_not_come_are_told(smtp: SmtpServer) -> None:
    with pytest.raises(AssertionError, match="0 of 1"):
        await smtp.wait_for(1, 0.05)


@pytest.mark.parametrize(
    ("stage", "code", "failure"),
    [
        (Stage.GREETING, 421, aiosmtplib.SMTPConnectError),
        (Stage.GREETING, 554, aiosmtplib.SMTPConnectError),
        (Stage.RECIPIENT, 421, aiosmtplib.SMTPRecipientsRefused),
        (Stage.RECIPIENT, 450, aiosmtplib.SMTPRecipientsRefused),
        (Stage.RECIPIENT, 550, aiosmtplib.SMTPRecipientsRefused),
        (Stage.DATA, 451, aiosmtplib.SMTPDataError),
        (Stage.END, 452, aiosmtplib.SMTPDataError),
        (Stage.END, 554, aiosmtplib.SMTPDataError),
    ],
)
async def test_it_refuses(
    smtp: SmtpServer, stage: Stage, code: int, failure: type[Exception]
) -> None:
    smtp.play(refuse(f"{code} 4.0.0 No", stage), accept)
    with pytest.raises(failure) as caught:
        await send(smtp)
    assert str(code) in repr(caught.value)
    assert smtp.mails == []
    await send(smtp)
    assert len(smtp.mails) == 1


@pytest.mark.parametrize("stage", [Stage.GREETING, Stage.RECIPIENT, Stage.DATA, Stage.END])
async def test_it_drops_the_connection(smtp: SmtpServer, stage: Stage) -> None:
    smtp.play(drop(stage), accept)
    with pytest.raises((aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPConnectError)):
        await send(smtp)
    assert (smtp.mails, smtp.in_flight) == ([], 0)
    await send(smtp)


@pytest.mark.parametrize("stage", [Stage.GREETING, Stage.RECIPIENT, Stage.DATA, Stage.END])
async def test_it_says_nothing(smtp: SmtpServer, stage: Stage) -> None:
    smtp.play(hang(stage), accept)
    with pytest.raises((aiosmtplib.SMTPTimeoutError, aiosmtplib.SMTPServerDisconnected)):
        await send(smtp, seconds=0.2)
    assert smtp.mails == []
    await send(smtp)


async def test_a_mail_is_kept_of_which_the_sender_does_not_hear(smtp: SmtpServer) -> None:
    smtp.play(stored_then_dropped, stored_then_hung, accept)
    with pytest.raises(aiosmtplib.SMTPServerDisconnected):
        await send(smtp)
    with pytest.raises(aiosmtplib.SMTPTimeoutError):
        await send(smtp, seconds=0.2)
    assert len(smtp.mails) == 2
    await send(smtp)
    assert len(smtp.mails) == 3


async def test_it_hangs_while_it_is_told_to(smtp: SmtpServer) -> None:
    smtp.hanging = True
    with pytest.raises(aiosmtplib.SMTPTimeoutError):
        await send(smtp, seconds=0.1)
    waiting = [asyncio.create_task(send(smtp)) for _ in range(3)]
    await until(lambda: smtp.in_flight >= 3)
    smtp.hanging = False
    await asyncio.gather(*waiting)
    assert len(smtp.mails) == 3
    assert smtp.most_in_flight >= 3


async def test_who_is_kept_waiting_is_released(smtp: SmtpServer) -> None:
    smtp.play(hang(Stage.END))
    waiting = asyncio.create_task(send(smtp))
    await until(lambda: smtp.in_flight)
    while not smtp.mails:
        smtp.release()
        await asyncio.sleep(0.01)
    await waiting


async def test_it_stops_while_it_hangs() -> None:
    async with SmtpServer().serving() as smtp:
        smtp.hanging = True
        waiting = asyncio.create_task(send(smtp))
        await until(lambda: smtp.in_flight)
    with pytest.raises(aiosmtplib.SMTPException):
        await waiting
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((smtp.host, smtp.port), 1)


async def test_a_step_is_of_one_message(smtp: SmtpServer) -> None:
    smtp.play(accept, refuse("450 4.2.1 Try again later"), accept)
    async with aiosmtplib.SMTP(hostname=smtp.host, port=smtp.port, start_tls=False) as client:
        await client.send_message(mail("1"))
        with pytest.raises(aiosmtplib.SMTPRecipientsRefused):
            await client.send_message(mail("2"))
        await client.send_message(mail("3"))
    assert [received.message["Subject"] for received in smtp.mails] == ["1", "3"]


@pytest.mark.parametrize("tls", [None, "starttls", "implicit"])
async def test_it_asks_who_it_is(tls: Any) -> None:
    async with SmtpServer(credentials=("service", "a password"), tls=tls).serving() as smtp:
        options: dict[str, Any] = {"use_tls": tls == "implicit", "start_tls": tls == "starttls"}
        if tls is not None:
            options["tls_context"] = ssl.create_default_context(cafile=smtp.certificate)
        with pytest.raises(aiosmtplib.SMTPResponseException, match="530"):
            await send(smtp, **options)
        with pytest.raises(aiosmtplib.SMTPAuthenticationError, match="535"):
            await send(smtp, username="service", password="another", **options)
        smtp.play(refuse("454 4.7.0 Temporary authentication failure", Stage.AUTH), accept)
        options |= {"username": "service", "password": "a password"}
        with pytest.raises(aiosmtplib.SMTPAuthenticationError, match="454"):
            await send(smtp, **options)
        await send(smtp, **options)
        [received] = smtp.mails
        assert (received.login, received.tls) == ("service", tls is not None)


async def test_it_wants_tls() -> None:
    async with SmtpServer(tls="starttls").serving() as smtp:
        with pytest.raises(aiosmtplib.SMTPResponseException, match="530"):
            await send(smtp)
        with pytest.raises(ssl.SSLCertVerificationError):
            await send(smtp, start_tls=True)
        assert smtp.mails == []


def test_the_program_serves_all_and_ends_at_once() -> None:
    ports = [free_port() for _ in range(4)]
    names = ["--hunter-port", "--clearbit-port", "--smtp-port", "--mailbox-port"]
    told = [each for name, port in zip(names, ports, strict=True) for each in (name, str(port))]
    command = [sys.executable, "-W", "error", "-m", "tests.stand_ins", *told]
    page = f"http://127.0.0.1:{ports[3]}/"
    with started(command, {}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(page, process)
        with smtplib.SMTP("127.0.0.1", ports[2], timeout=5) as client:
            client.send_message(mail("<b>"))
        with urllib.request.urlopen(page, timeout=5) as response:
            shown = response.read().decode()
        assert "&lt;b&gt;" in shown
        assert f'href="{LINK}"' in shown
        query = "v2/email-verifier?email=invalid@example.com&api_key=test-api-key"
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/{query}", timeout=5) as response:
            assert b'"status": "invalid"' in response.read()
        with socket.create_connection(("127.0.0.1", ports[2])):
            began = time.monotonic()
            process.terminate()
            _, errors = process.communicate(timeout=5)
        assert time.monotonic() - began < 1
        assert (process.returncode, errors) == (0, "")
