"""No webhook reaches what is not public, whatever the URL or the name server says."""

import socket
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from service.domain.webhook_deliveries import AttemptError
from service.providers.webhooks import WebhookSender, open_webhook_sender
from tests.stand_ins.certificate import write_certificate
from tests.stand_ins.webhooks import Receiver

_connected: list[Any] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        _connected.append(arguments[1])


sys.addaudithook(_note)


@pytest.fixture
def connected() -> list[Any]:
    """The addresses that sockets of this process are connected to from now on."""
    _connected.clear()
    return _connected


class NameServer(AbstractResolver):
    """Answers each question with the next of its answers, and the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in answer
        ]

    async def close(self) -> None: ...


@asynccontextmanager
async def sender_to_a_part_of_loopback(*answers: Sequence[str]) -> AsyncIterator[WebhookSender]:
    """127.0.0.2 stands for what is public: a test reaches nothing that is."""
    async with open_webhook_sender([ip_network("127.0.0.2")], NameServer(*answers)) as sender:
        yield sender


LITERALS = [
    "127.0.0.1",
    "127.0.0.53",
    "127.1",
    "0",
    "0.0.0.0",
    "0x7f.1",
    "0x7f000001",
    "0177.0.0.1",
    "017700000001",
    "2130706433",
    "127.0.0.1.",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.100.100.200",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2002:a00:1::1]",
    "[2001::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[fec0::1]",
    "[ff02::1]",
    "localhost",
    "localhost.",
    "ip6-localhost",
]


@pytest.mark.parametrize("host", LITERALS)
async def test_no_connection_is_made_to_a_literal(host: str, connected: list[Any]) -> None:
    """Stored somehow, or accepted by an older release: the check of URLs is not what protects."""
    async with Receiver().serving() as receiver, open_webhook_sender(()) as sender:
        port = receiver.url.rpartition(":")[2]
        for scheme in ("https", "http"):
            outcome = await sender.send(f"{scheme}://{host}:{port}", b"{}", {})
            assert outcome.error in {
                AttemptError.ADDRESS_NOT_ALLOWED,
                AttemptError.NAME_NOT_FOUND,
                AttemptError.CONNECTION_FAILED,
            }
    assert [address for address in connected if not isinstance(address, str | bytes)] == []
    assert receiver.got == []


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "64:ff9b::7f00:1"]
)
async def test_no_connection_is_made_where_a_name_leads_inside(
    address: str, connected: list[Any]
) -> None:
    async with sender_to_a_part_of_loopback([address, address]) as sender:
        outcome = await sender.send("http://hooks.example.com/", b"{}", {})
    assert outcome.error is AttemptError.ADDRESS_NOT_ALLOWED
    assert connected == []


async def test_a_name_that_leads_outside_and_then_inside_is_not_followed() -> None:
    async with (
        Receiver().serving("127.0.0.2") as outside,
        Receiver().serving("127.0.0.1", int(outside.url.split(":")[2].split("/")[0])) as inside,
    ):
        url = outside.url.replace("127.0.0.2", "hooks.example.com")
        async with sender_to_a_part_of_loopback(["127.0.0.2"], ["127.0.0.1"]) as sender:
            assert (await sender.send(url, b"{}", {})).delivered
            # As after some seconds: connections and answers are not kept for ever.
            for session in (sender._encrypted, sender._unencrypted):
                session.connector.clear_dns_cache()  # type: ignore[union-attr]
                session.connector._conns.clear()  # type: ignore[union-attr]
            outcome = await sender.send(url, b"{}", {})
        assert outcome.error is AttemptError.ADDRESS_NOT_ALLOWED
        assert (len(outside.got), len(inside.got)) == (1, 0)


async def test_of_several_addresses_only_those_outside_are_tried(connected: list[Any]) -> None:
    async with Receiver().serving("127.0.0.2") as outside:
        url = outside.url.replace("127.0.0.2", "hooks.example.com")
        async with sender_to_a_part_of_loopback(["10.0.0.1", "::1", "127.0.0.2"]) as sender:
            assert (await sender.send(url, b"{}", {})).delivered
    assert {address[0] for address in connected} == {"127.0.0.2"}


async def test_no_webhook_follows_a_redirect(connected: list[Any]) -> None:
    async with Receiver().serving("127.0.0.2") as outside:
        for status in (301, 302, 303, 307, 308):
            outside.status = status
            outside.headers = {"Location": "http://169.254.169.254/latest/meta-data/"}
            async with sender_to_a_part_of_loopback(["127.0.0.2"]) as sender:
                outcome = await sender.send(outside.url, b"{}", {})
            assert (outcome.status, outcome.delivered) == (status, False)
    assert {address[0] for address in connected} == {"127.0.0.2"}


async def test_what_is_not_encrypted_stays_in_the_companys_own_network(
    connected: list[Any],
) -> None:
    async with sender_to_a_part_of_loopback(["8.8.8.8"]) as sender:
        outcome = await sender.send("http://hooks.example.com/", b"{}", {})
    assert outcome.error is AttemptError.ADDRESS_NOT_ALLOWED
    assert connected == []


async def test_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch, connected: list[Any]) -> None:
    async with Receiver().serving("127.0.0.1") as proxy, Receiver().serving("127.0.0.2") as outside:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with sender_to_a_part_of_loopback(["127.0.0.2"]) as sender:
            assert (await sender.send(outside.url, b"{}", {})).delivered
        assert proxy.got == []


async def test_a_certificate_that_nobody_vouches_for_is_not_accepted(tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*write_certificate(tmp_path))
    async with (
        Receiver().serving("127.0.0.2", context=context) as outside,
        sender_to_a_part_of_loopback(["127.0.0.2"]) as sender,
    ):
        outcome = await sender.send(outside.url, b"{}", {})
    assert outcome.error is AttemptError.TLS_FAILED
    assert outside.got == []
