"""Clients that are slow, silent or in the way of a restart."""

import asyncio
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import monotonic

import aiohttp
import pytest

from tests.e2e.processes import (
    LOOPBACK,
    Service,
    free_port,
    own_database,
    service_process,
    started,
    status_of,
    wait_for,
)

IMPATIENT = """
from service.api.http import requests
from service.cli.parser import main
from service.server import listeners, worker
worker.IDLE_SECONDS = listeners.UNREAD_SECONDS = requests.BODY_SECONDS = 1.0
main(["serve"])
"""
HALF_A_BODY = (
    b"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b'Content-Length: 100\r\n\r\n{"email'
)
LOITERING = [
    # what a client sends before it falls silent, and how its answer begins
    (b"", b""),
    (b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Slow: ", b""),
    (HALF_A_BODY, b"HTTP/1.1 408 "),
    (b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 "),
]


@contextmanager
def impatient_service(environment: Mapping[str, str]) -> Iterator[Service]:
    """Run the service with time limits of one second."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    with own_database(environment["DATABASE_URL"]) as database_url:
        own = {"HOST": LOOPBACK, "PORT": str(port), "PUBLIC_URL": url, "WORKERS": "1"}
        told = {**environment, "DATABASE_URL": database_url, **own}
        with started([sys.executable, "-c", IMPATIENT], told) as process:
            wait_for(f"{url}/health/ready", process)
            yield Service(url, told, process)


def ends(connection: socket.socket) -> bytes:
    """Return what the service sends until it ends the connection."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def test_clients_that_loiter_hold_up_nobody_and_are_sent_away(environment: dict[str, str]) -> None:
    with impatient_service(environment) as service, ExitStack() as stack:
        address = (LOOPBACK, int(service.environment["PORT"]))
        loiterers = []
        for sent, answer in LOITERING * 100:
            loiterer = stack.enter_context(socket.create_connection(address))
            loiterer.sendall(sent)
            loiterers.append((loiterer, answer))
        begun = monotonic()
        assert status_of(f"{service.url}/health/ready") == 200
        assert monotonic() - begun < 1
        for loiterer, answer in loiterers:
            loiterer.settimeout(10)
            received = ends(loiterer)
            assert received.startswith(answer)
            assert bool(received) is bool(answer)


def send_without_end(client: socket.socket, data: bytes) -> None:
    while True:
        client.sendall(data)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems wait for longer")
def test_a_client_that_reads_no_answers_is_let_go(environment: dict[str, str]) -> None:
    """TCP_USER_TIMEOUT: else what it did not read would be kept for as long as it likes."""
    with impatient_service(environment) as service:
        with socket.create_connection((LOOPBACK, int(service.environment["PORT"]))) as client:
            client.settimeout(10)
            request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                send_without_end(client, request * 100)
        assert status_of(f"{service.url}/health/ready") == 200


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_under_load_no_request_is_lost_to_sigterm(
    environment: dict[str, str], workers: str
) -> None:
    """What has been connected is answered, and told that the connection ends; then nobody
    listens any more."""
    told: Counter[str] = Counter()

    async def ask(url: str, kept: bool) -> None:
        timeout = aiohttp.ClientTimeout(10)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            session._retry_connection = False  # a loss would be repaired behind our back
            headers = {} if kept else {"Connection": "close"}
            while not told["refused"]:
                try:
                    async with session.get(f"{url}/health/live", headers=headers) as answer:
                        told[str(answer.status)] += 1
                except aiohttp.ClientConnectorError:
                    told["refused"] += 1
                except (aiohttp.ClientError, OSError) as error:
                    told[repr(error)] += 1

    with service_process(environment, WORKERS=workers) as service:
        clients = [asyncio.create_task(ask(service.url, kept)) for kept in [True, False] * 20]
        await asyncio.sleep(0.5)
        os.kill(service.process.pid, signal.SIGTERM)
        await asyncio.gather(*clients)
        assert await asyncio.to_thread(service.process.wait, 5) == 0
    assert set(told) == {"200", "refused"}, told


async def test_of_500_sign_ins_at_once_some_are_refused_and_nobody_else_waits(
    environment: dict[str, str],
) -> None:
    """HASHING_QUEUE, and hashes on threads of low priority: the memory of one hash is 19 MiB."""
    cost = {"ARGON2_MEMORY_KIB": "19456", "ARGON2_PASSES": "2", "HASHING_QUEUE": "64"}
    credentials = {"email": "anna@example.com", "password": "a long walk by the river"}
    with service_process(environment, **cost) as service:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(service.url, connector=connector) as session:

            async def sign_in() -> tuple[int, str | None]:
                async with session.post("/api/v1/auth/login", json=credentials) as answer:
                    return answer.status, answer.headers.get("Retry-After")

            memory = resident_mib(service.process.pid)
            attempts = [asyncio.create_task(sign_in()) for _ in range(500)]
            times = []
            while not all(attempt.done() for attempt in attempts):
                begun = monotonic()
                async with session.get("/health/live") as answer:
                    assert answer.status == 200
                times.append(monotonic() - begun)
                await asyncio.sleep(0.02)
            told = Counter([await attempt for attempt in attempts])
        assert set(told) == {(401, None), (503, "1")}
        assert told[401, None] >= 64
        assert median(times) < 0.1
        assert resident_mib(service.process.pid) < memory + 100


def resident_mib(pid: int) -> int:
    """Return the memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20
