"""Issuers on loopback, scripted by tests: OpenID Connect with real keys, and GitHub."""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlsplit

import asyncpg
import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tests.factories import Answer, Api, Person

CLIENT_ID = "our client: 1"  # with what has to be encoded in a header
CLIENT_SECRET = "a secret: +%&"
EMAIL = "Ada@Example.com"
ADA: dict[str, Any] = {"sub": "ada-1", "email": EMAIL, "email_verified": True}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Key:
    """A signing key of an issuer."""

    key_id: str
    private: Any
    algorithm: str

    @classmethod
    def es256(cls, key_id: str) -> "Key":
        return cls(key_id, ec.generate_private_key(ec.SECP256R1()), "ES256")

    @classmethod
    def rs256(cls, key_id: str, bits: int = 2048) -> "Key":
        return cls(key_id, rsa.generate_private_key(65537, bits), "RS256")

    def to_public_jwk(self) -> dict[str, Any]:
        kind = RSAAlgorithm if self.algorithm.startswith("RS") else ECAlgorithm
        return {**kind.to_jwk(self.private.public_key(), as_dict=True), "kid": self.key_id}

    def sign(self, claims: Mapping[str, Any]) -> str:
        return jwt.encode(dict(claims), self.private, self.algorithm, {"kid": self.key_id})


@dataclass
class Issuer:
    """An OpenID Connect issuer. What a test changes here is what it then says.

    `claims` are the person's who signs in. `forge` gets the claims of the next ID tokens and
    returns the token. `instead` answers at a path in the issuer's place.
    """

    url: str
    keys: list[Key]
    claims: dict[str, Any] = field(default_factory=dict)
    userinfo: dict[str, Any] | None = None
    description: dict[str, Any] = field(default_factory=dict)
    forge: Callable[[dict[str, Any]], str] | None = None
    instead: dict[str, Handler] = field(default_factory=dict)
    secret: str | None = CLIENT_SECRET
    calls: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    _granted: dict[str, dict[str, str]] = field(default_factory=dict)

    def grant(self, request: Mapping[str, str]) -> str:
        """Return a code for the request that a browser was sent with."""
        code = secrets.token_urlsafe(16)
        self._granted[code] = dict(request)
        return code

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(request.path)
        assert "Cookie" not in request.headers, "it might be another user's"
        if request.path in self.instead:
            return await self.instead[request.path](request)
        match request.path:
            case "/.well-known/openid-configuration":
                return web.json_response(self.describe())
            case "/jwks":
                return web.json_response({"keys": [key.to_public_jwk() for key in self.keys]})
            case "/token":
                return await self._redeem(request)
            case "/userinfo":
                assert request.headers["Authorization"].removeprefix("Bearer ") in self.tokens
                return web.json_response(self.userinfo)
        raise web.HTTPNotFound

    def describe(self) -> dict[str, Any]:
        described = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize?by=browser",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "authorization_response_iss_parameter_supported": True,
            **self.description,
        }
        if self.userinfo is not None:
            described.setdefault("userinfo_endpoint", f"{self.url}/userinfo")
        return described

    async def _redeem(self, request: web.Request) -> web.Response:
        form = dict(parse_qsl((await request.read()).decode(), strict_parsing=True))
        if not self._is_the_client(request, form):
            return web.json_response({"error": "invalid_client"}, status=401)
        asked = self._granted.pop(form["code"], None)
        verifier = hashlib.sha256(form["code_verifier"].encode()).digest()
        if (
            asked is None
            or form["grant_type"] != "authorization_code"
            or form["redirect_uri"] != asked["redirect_uri"]
            or encode(verifier) != asked["code_challenge"]
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **self.claims,
        }
        id_token = self.forge(claims) if self.forge else self.keys[0].sign(claims)
        self.tokens += [secrets.token_urlsafe(16), id_token]
        response = web.json_response(
            {"access_token": self.tokens[-2], "token_type": "Bearer", "id_token": id_token}
        )
        response.set_cookie("who", form["code"])
        return response

    def _is_the_client(self, request: web.Request, form: Mapping[str, str]) -> bool:
        """By the header as RFC 6749, 2.3.1 has it, else by the form."""
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            one, _, other = base64.b64decode(credentials).decode().partition(":")
            return (unquote_plus(one), unquote_plus(other)) == (CLIENT_ID, self.secret)
        return (form["client_id"], form.get("client_secret")) == (CLIENT_ID, self.secret)


@dataclass
class GitHub:
    """What GitHub's site and its API say."""

    user: Any = field(default_factory=lambda: {"id": 583231, "login": "octocat", "email": None})
    emails: Any = field(default_factory=list)
    token: Any = field(default_factory=lambda: {"access_token": "gho_1", "scope": "user:email"})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/login/oauth/access_token":
            form = await request.post()
            assert request.headers["Accept"] == "application/json"
            assert (form["client_id"], form["client_secret"]) == (CLIENT_ID, CLIENT_SECRET)
            assert len(str(form["code_verifier"])) >= 43
            return web.json_response(self.token)
        assert request.headers["Authorization"] == "Bearer gho_1"
        assert request.headers["User-Agent"]
        shown = {"/user": self.user, "/user/emails": self.emails}[request.path]
        return web.json_response(shown, status=200 if shown is not None else 404)


@asynccontextmanager
async def served(answer: Handler) -> AsyncIterator[str]:
    """Serve on a free port of loopback; yield the address."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)  # type: ignore[arg-type]
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(claims: Mapping[str, Any], secret: bytes | None, **header: Any) -> str:
    """Return a token with any header: signed with HMAC, or with nothing."""
    parts = [encode(json.dumps(part).encode()) for part in (header, claims)]
    signed = ".".join(parts)
    mac = b"" if secret is None else hmac.digest(secret, signed.encode(), "sha256")
    return f"{signed}.{encode(mac)}"


@dataclass(frozen=True)
class Begun:
    """A browser on its way to the issuer: with what, and with which cookie."""

    provider: str
    location: str
    cookie: str

    @property
    def request(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.location).query))


async def begin(
    api: Api, provider: str = "corp", *, cookie: str | None = None, **query: str
) -> Begun:
    """Press the button, in a browser that has a cookie already or none."""
    path = f"/auth/providers/{provider}/start"
    headers = {} if cookie is None else {"Cookie": cookie}
    answer = await api.get(path, params=query, headers=headers, allow_redirects=False)
    assert answer.status == 303, answer.body
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    return Begun(provider, answer.headers["Location"], cookie)


async def come_back(
    api: Api, begun: Begun, *, cookie: str | None = None, **parameters: str | None
) -> Answer:
    """Let the issuer send the browser back; parameters that are None are left out."""
    query = {"state": begun.request["state"], **parameters}
    return await api.get(
        f"/auth/providers/{begun.provider}/callback",
        params={name: value for name, value in query.items() if value is not None},
        headers={"Cookie": begun.cookie if cookie is None else cookie},
    )


async def sign_in(api: Api, issuer: Issuer, **query: str) -> Answer:
    """Go there and back, as whom the issuer's claims say."""
    begun = await begin(api, **query)
    return await come_back(api, begun, code=issuer.grant(begun.request), iss=issuer.url)


async def signed_in(api: Api, issuer: Issuer, **query: str) -> Person:
    """Go there and back; return the user that this is here."""
    answer = await sign_in(api, issuer, **query)
    assert answer.status == 200, answer.body
    tokens = answer.json()
    return Person(tokens["user_id"], EMAIL, tokens["access_token"], tokens["refresh_token"], "")


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError("nobody waits so long")


async def rows(database: asyncpg.Connection) -> tuple[int, int]:
    """Return how many accounts and identities there are."""
    return (
        await database.fetchval("SELECT count(*) FROM users"),
        await database.fetchval("SELECT count(*) FROM identities"),
    )


SOMEBODY = Key.es256("first")  # an attacker's, of the same name


def answering(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=headers)

    return answer


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def trickle(request: web.Request) -> web.StreamResponse:
    """Send a body that never ends, a byte at a time."""
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)
    except ConnectionError:
        return response


TROUBLE: dict[str, Handler] = {
    "slow": hang,
    "a byte at a time": trickle,
    "hanging up": hang_up,
    "500": answering(b"{}", 500),
    "503 in HTML": answering(b"<html>", 503),
    "10 MB": answering(b"[" + b" " * 10_000_000 + b"]"),
    "truncated JSON": answering(b'{"keys": ['),
    "not UTF-8": answering(b'{"keys": "\xff"}'),
    "brackets without end": answering(b"[" * 60_000),
    "a number of 60000 digits": answering(b"1" * 60_000),
    "nothing": answering(b""),
    "a list": answering(b"[]"),
    "null": answering(b"null"),
}
