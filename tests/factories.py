"""What tests make: a running service, its users, a clock that can be moved."""

import itertools
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NoReturn

import aiohttp
from aiohttp import web
from multidict import MultiMapping

from service.api.http.runner import Runner
from service.app import create_app
from service.domain.clock import utc_now
from service.security.signing_keys import SigningKey
from service.settings.settings import Settings
from service.use_cases.idempotency import AnswerOnce

PASSWORD = "a long walk by the river"
_numbers = itertools.count(1)


def render_nothing(_: object) -> NoReturn:
    raise AssertionError("no answer is kept without a key")


WITHOUT_KEY: AnswerOnce[Any] = AnswerOnce(None, render_nothing)
"""A request without an idempotency key."""


class MovableClock:
    """The present moment, plus what a test has added."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.ahead


@dataclass(frozen=True)
class Answer:
    """A response, read whole."""

    status: int
    headers: MultiMapping[str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Person:
    """Somebody who has registered and signed in."""

    user_id: str
    email: str
    access_token: str
    refresh_token: str
    password: str = PASSWORD


@dataclass
class Api:
    """A client of a service that listens on loopback."""

    session: aiohttp.ClientSession
    app: web.Application
    address: tuple[str, int]
    clock: MovableClock = field(default_factory=MovableClock)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        by: Person | str | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Answer:
        """Send a request; `path` begins behind /api/v1 unless it begins with //."""
        url = path[1:] if path.startswith("//") else f"/api/v1{path}"
        sent = dict(headers or {})
        if by is not None:
            token = by.access_token if isinstance(by, Person) else by
            sent["Authorization"] = f"Bearer {token}"
        if body is not None:
            options["json"] = body
        async with self.session.request(method, url, headers=sent, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("POST", path, body, **options)

    async def put(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("PUT", path, body, **options)

    async def patch(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("PATCH", path, body, **options)

    async def delete(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("DELETE", path, body, **options)

    async def register(self, email: str | None = None, **members: Any) -> Answer:
        """Try to register."""
        return await self.post(
            "/auth/register", {"email": email or new_email(), "password": PASSWORD, **members}
        )

    async def log_in(self, email: str, password: str = PASSWORD) -> Answer:
        """Try to sign in."""
        return await self.post("/auth/login", {"email": email, "password": password})

    async def new_person(self, email: str | None = None, **members: Any) -> Person:
        """Register and sign in."""
        email = email or new_email()
        registered = await self.register(email, **members)
        assert registered.status == 201, registered.body
        return await self.signed_in(email)

    async def signed_in(self, email: str) -> Person:
        """Sign in with the usual password."""
        tokens = (await self.log_in(email)).json()
        return Person(tokens["user_id"], email, tokens["access_token"], tokens["refresh_token"])

    async def new_code(self, owner: Person, **wish: Any) -> str:
        """Create a referral code and return it."""
        created = await self.post("/referral-code", {"expires_in_days": 7, **wish}, by=owner)
        assert created.status == 201, created.body
        code: str = created.json()["code"]
        return code


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Api]:
    """Run the service on a free port of loopback."""
    clock = MovableClock()
    app = create_app(settings, clock)
    runner = Runner(app, access_log=None, auto_decompress=False, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(f"http://{host}:{port}", connector=connector) as session:
            yield Api(session, app, (host, port), clock)
    finally:
        await runner.cleanup()


def new_email() -> str:
    """Return an e-mail that no other test uses."""
    return f"person{next(_numbers)}@example.com"


def new_secrets() -> dict[str, str]:
    """Return the secrets that a service needs, as an environment has them."""
    return {
        "SIGNING_KEYS": json.dumps({"keys": [SigningKey.generate().to_jwk()]}),
        "REFRESH_TOKEN_KEYS": secrets.token_urlsafe(32),
        "HASH_KEY": secrets.token_urlsafe(32),
    }
