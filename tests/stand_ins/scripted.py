"""HTTP services that answer as documented, until a script says otherwise.

    hunter.verifier.play(status(202), status(202), verdict("valid"))
    hunter.verifier.play(reset, to="anna@example.com")
    hunter.verifier.play_for_each(status(202), as_usual)
    hunter.hanging = True

A script is a sequence of steps: one a request, and the last one for ever. Requests that are not
as documented (no key, a wrong one, no e-mail) are refused before the script is asked.
"""

import asyncio
import json
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from multidict import MultiMapping

from tests.stand_ins.hanging import Hanging

JSON = "application/json; charset=utf-8"
HUGE = 10 * 1024 * 1024


@dataclass(frozen=True)
class Received:
    """A request that has come, whatever became of it."""

    method: str
    path: str
    query: MultiMapping[str]
    headers: MultiMapping[str]
    at: float = field(default_factory=time.monotonic)

    @property
    def email(self) -> str | None:
        return self.query.get("email")


class Endpoint(ABC):
    """One call of an API: what it answers, and what its script makes of it."""

    path: str

    def __init__(self) -> None:
        self._of_all: list[Step] = []
        self._of_each: list[Step] = []
        self._of: dict[str, list[Step]] = {}

    def play(self, *steps: "Step", to: str | None = None) -> None:
        """Answer so from now on: everybody, or only questions about the email address `to`."""
        if to is None:
            self._of_all, self._of_each, self._of = list(steps), [], {}
        else:
            self._of[to] = list(steps)

    def play_for_each(self, *steps: "Step") -> None:
        """Answer so from now on, for each email address from the first step."""
        self._of_all, self._of_each, self._of = [], list(steps), {}

    def next_step(self, email: str) -> "Step":
        if self._of_each:
            self._of.setdefault(email, list(self._of_each))
        steps = self._of.get(email) or self._of_all or [as_usual]
        return steps.pop(0) if len(steps) > 1 else steps[0]

    @abstractmethod
    def document(self, email: str) -> Any:
        """The documented body of a 200."""

    @abstractmethod
    def answer(self, status: int, email: str) -> web.Response:
        """The documented answer with that status."""

    def usual_status(self, email: str) -> int:
        """The status that the local part asks for."""
        return 404 if email.startswith("nobody") else 200


class StandIn(Hanging, ABC):
    """A service outside, in the shape of an API: records every request and answers it."""

    def __init__(self, key: str, *endpoints: Endpoint) -> None:
        super().__init__()
        self.key = key
        self.url = ""
        self.requests: list[Received] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._endpoints = {endpoint.path: endpoint for endpoint in endpoints}

    def asked_about(self, email: str) -> list[Received]:
        return [request for request in self.requests if request.email == email]

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Self]:
        """Serve at `url`, on a free port unless one is named, until the block ends."""
        server = web.Server(self._handle, handler_cancellation=True)  # type: ignore[arg-type]
        runner = web.ServerRunner(server, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            self.url = f"http://{host}:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(Received(request.method, request.path, request.query, request.headers))
        with self._counted():
            await self.wait_while_hanging()
            endpoint = self._endpoints.get(request.path) if request.method == "GET" else None
            if endpoint is None:
                return self.unknown_route()
            refusal = self.refuse(request)
            if refusal is not None:
                return refusal
            email = request.query["email"]
            return await endpoint.next_step(email)(Call(self, endpoint, request, email))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    @abstractmethod
    def refuse(self, request: web.Request) -> web.Response | None:
        """The documented refusal, if the key or the email address is missing or wrong."""

    @abstractmethod
    def unknown_route(self) -> web.Response:
        """The documented answer at any other address."""


@dataclass(frozen=True)
class Call:
    """A request that a step is to answer."""

    stand_in: StandIn
    endpoint: Endpoint
    request: web.Request
    email: str

    def document(self) -> Any:
        return self.endpoint.document(self.email)

    def body(self) -> bytes:
        return json.dumps(self.document()).encode()

    def hang_up(self, *, reset: bool = False) -> web.Response:
        """Close the connection, with everything that was written but not an answer."""
        transport = self.request.transport
        if transport is not None and reset:
            connection = transport.get_extra_info("socket")
            # Closing without lingering is a reset (RST), not an end (FIN).
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        elif transport is not None:
            transport.close()
        return web.Response()  # goes nowhere


Step = Callable[[Call], Awaitable[web.StreamResponse]]


async def as_usual(call: Call) -> web.StreamResponse:
    """What the endpoint answers without a script."""
    return call.endpoint.answer(call.endpoint.usual_status(call.email), call.email)


def status(code: int) -> Step:
    """The documented answer with that status."""

    async def step(call: Call) -> web.StreamResponse:
        return call.endpoint.answer(code, call.email)

    return step


def content(body: bytes, *, code: int = 200, content_type: str = JSON) -> Step:
    """Any bytes."""

    async def step(call: Call) -> web.StreamResponse:
        return web.Response(body=body, status=code, headers={"Content-Type": content_type})

    return step


def document(value: Any, *, code: int = 200) -> Step:
    """Any JSON: an object, a list, a text, a number, null."""
    return content(json.dumps(value).encode(), code=code)


def nested(depth: int) -> Step:
    """JSON of brackets within brackets."""
    return content(b"[" * depth + b"]" * depth)


def changed(change: Callable[[Any], Any]) -> Step:
    """The documented body, as `change` returns it."""

    async def step(call: Call) -> web.StreamResponse:
        return json_response(change(call.document()))

    return step


def without(*paths: str) -> Step:
    """The documented body with null at each path: `without("data.person")`."""

    def change(body: Any) -> Any:
        for path in paths:
            *parents, name = path.split(".")
            place = body
            for parent in parents:
                place = place[parent]
            if name not in place:
                raise LookupError(f"there is no {path}")
            place[name] = None
        return body

    return changed(change)


def with_null_leaves(value: Any) -> Any:
    """Return `value` with null in place of each leaf."""
    if isinstance(value, dict):
        return {name: with_null_leaves(member) for name, member in value.items()}
    if isinstance(value, list):
        return [with_null_leaves(member) for member in value]
    return None


null_leaves: Step = changed(with_null_leaves)
html: Step = content(b"<!doctype html><title>Just a moment</title>", content_type="text/html")


async def truncated(call: Call) -> web.StreamResponse:
    """Half of the body, announced as the whole."""
    body = call.body()
    return web.Response(body=body[: len(body) // 2], headers={"Content-Type": JSON})


async def cut_off(call: Call) -> web.StreamResponse:
    """Half of the body that the headers announce, and the connection ends."""
    body = call.body()
    response = await _begin(call, length=len(body))
    await response.write(body[: len(body) // 2])
    call.hang_up()
    return response


async def huge(call: Call) -> web.StreamResponse:
    """10 MiB that begin as the documented body does; how many they are is not announced."""
    body = call.body()
    response = await _begin(call)
    await response.write(body[:-1] + b', "padding": "')
    for _ in range(HUGE // 65_536):
        await response.write(b"x" * 65_536)
    await response.write(b'"}')
    return response


def slow(seconds: float = 0.1) -> Step:
    """The documented body, a byte at a time with a pause after each."""

    async def step(call: Call) -> web.StreamResponse:
        body = call.body()
        response = await _begin(call, length=len(body))
        for byte in body:
            await response.write(bytes([byte]))
            await asyncio.sleep(seconds)
        return response

    return step


async def hang(call: Call) -> web.StreamResponse:
    """Nothing until the stand-in releases; then the usual answer."""
    await call.stand_in.wait_for_release()
    return await as_usual(call)


async def reset(call: Call) -> web.StreamResponse:
    """The connection is reset without an answer."""
    return call.hang_up(reset=True)


async def garbage(call: Call) -> web.StreamResponse:
    """Bytes that are not HTTP."""
    if call.request.transport is not None:
        call.request.transport.write(b"\x16\x03\x01\x00\xfeSSH-2.0-\r\n\r\n\x00\xff")
    return call.hang_up()


def redirect(location: str, *, code: int = 302) -> Step:
    """To another address; another stand-in there records whether anybody came."""

    async def step(call: Call) -> web.StreamResponse:
        return web.Response(status=code, headers={"Location": location})

    return step


async def _begin(call: Call, *, length: int | None = None) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": JSON})
    response.content_length = length
    await response.prepare(call.request)
    return response


def json_response(
    body: Any, code: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.json_response(body, status=code, headers=headers)
