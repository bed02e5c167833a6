"""An answer with a prebuilt head is what aiohttp would have sent."""

import asyncio
import re
import socket

import pytest

from service.api.http.app_keys import STOPPING
from tests.api.wire import request, send
from tests.factories import Answer, Api, Person

OF_ONE_ANSWER = {"x-request-id", "date", "connection"}


def plain(answer: Answer) -> dict[str, str]:
    lowered = ((name.lower(), value) for name, value in answer.headers.items())
    return {name: value for name, value in lowered if name not in OF_ONE_ANSWER}


@pytest.fixture
async def paths(api: Api, anna: Person) -> list[str]:
    await api.new_code(anna)
    return [
        f"/api/v1/referral-code/{anna.email}",
        "/api/v1/referral-code/nobody@example.com",
        "/api/v1/nowhere",
        "/api/v1/users/me",
        "/health/live",
    ]


async def test_it_has_the_same_headers_and_body(api: Api, paths: list[str]) -> None:
    """For a connection that is to be closed aiohttp makes the head."""
    for path in paths:
        for authorization in ([], [b"Authorization: Bearer nonsense"]):
            by_aiohttp = await send(api, request("GET", path, authorization))
            headers = {"Authorization": "Bearer nonsense"} if authorization else {}
            by_us = await api.get(f"/{path}", headers=headers)
            assert by_us.status == by_aiohttp.status
            assert plain(by_us) == plain(by_aiohttp)
            assert by_aiohttp.headers["Connection"] == "close"
            if by_us.status == 200:
                assert by_us.body == by_aiohttp.body
            assert len(by_us.body) == int(by_us.headers["Content-Length"])


async def test_head_is_get_without_the_body(api: Api, paths: list[str]) -> None:
    for path in paths:
        got = await api.get(f"/{path}")
        head = await api.call("HEAD", f"/{path}")
        assert (head.status, head.body) == (got.status, b"")
        assert head.headers["Content-Length"] == got.headers["Content-Length"]
        assert plain(head) == plain(got)


async def test_requests_sent_at_once_are_answered_in_order(api: Api, paths: list[str]) -> None:
    first, second, *_ = paths
    sent = b"".join(
        request("GET", path).replace(b"Connection: close\r\n", b"") for path in (first, second)
    )
    answer = await send(api, sent + request("GET", first))
    assert answer.status == 200
    behind = re.findall(rb"HTTP/1\.1 (\d+) ", answer.body)
    assert behind == [b"404", b"200"]


async def test_a_client_of_http_1_0_gets_an_answer_and_the_end(api: Api, paths: list[str]) -> None:
    raw = request("GET", paths[0]).replace(b"HTTP/1.1", b"HTTP/1.0")
    for sent in (raw, raw.replace(b"Connection: close\r\n", b"")):
        answer = await send(api, sent)
        assert answer.status == 200
        assert len(answer.body) == int(answer.headers["Content-Length"])
    kept = await send(api, raw.replace(b"Connection: close", b"Connection: keep-alive") + raw)
    assert kept.headers["Connection"] == "keep-alive"
    assert kept.body.count(b"HTTP/1.0 200 OK\r\n") == 1


async def test_the_answer_of_an_ending_process_is_the_last(api: Api, paths: list[str]) -> None:
    api.app[STOPPING].set()
    for path in paths:
        sent = request("GET", path).replace(b"Connection: close\r\n", b"")
        answer = await send(api, sent + sent)
        assert answer.headers["Connection"] == "close"
        assert b"HTTP/1.1" not in answer.body


async def test_a_client_that_reads_nothing_is_not_answered_for_ever(
    api: Api, paths: list[str]
) -> None:
    """Otherwise its answers would pile up in memory."""
    padding = [b"X-Padding: " + b"x" * 4000]  # more than the buffers of the system take
    sent = request("GET", paths[0], padding).replace(b"Connection: close\r\n", b"")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, api.address)
    _, writer = await asyncio.open_connection(sock=connection, limit=1)
    try:
        writer.transport.set_write_buffer_limits(high=0)
        held_up = False
        for _ in range(200):
            writer.write(sent * 100)
            try:
                await asyncio.wait_for(writer.drain(), 0.5)
            except TimeoutError:
                held_up = True
                break
        assert held_up, "20 000 requests were taken, and none of the answers read"
    finally:
        writer.transport.abort()
