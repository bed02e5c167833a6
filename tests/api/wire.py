"""Requests as bytes: for what no HTTP library would send."""

import asyncio
import json
from collections.abc import Sequence

from multidict import CIMultiDict

from tests.factories import Answer, Api

Headers = Sequence[bytes]


def request(method: str, target: str | bytes, headers: Headers = (), body: bytes = b"") -> bytes:
    """Return a request that ends its connection; `headers` are whole lines."""
    path = target if isinstance(target, bytes) else target.encode()
    lines = [
        method.encode() + b" " + path + b" HTTP/1.1",
        b"Host: localhost",
        b"Connection: close",
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def json_request(method: str, target: str, document: object, headers: Headers = ()) -> bytes:
    """Return a request with a JSON body."""
    body = json.dumps(document).encode()
    about = [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return request(method, target, [*about, *headers], body)


async def send(api: Api, raw: bytes) -> Answer:
    """Send the bytes, and read until the service ends the connection."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*api.address)
        try:
            writer.write(raw)
            received = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
    head, _, body = received.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100 "):
        head, _, body = body.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers: CIMultiDict[str] = CIMultiDict()
    for line in lines:
        name, _, value = line.partition(": ")
        headers.add(name, value)
    return Answer(int(status_line.split()[1]), headers, body)
