"""What every answer carries, of whatever kind it is."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import asyncpg
import pytest
from redis.asyncio import Redis

from service.settings.settings import Settings
from tests.api.wire import request, send
from tests.factories import PASSWORD, Answer, Api, Person, running

Ask = Callable[[Api, Person], Awaitable[Answer]]
KINDS: dict[str, Ask] = {
    "200": lambda api, anna: api.get("/users/me", by=anna),
    "201": lambda api, anna: api.post("/referral-code", {"expires_in_days": 1}, by=anna),
    "204": lambda api, anna: api.delete("/users/me", {"password": PASSWORD}, by=anna),
    "400": lambda api, _: api.post("/auth/login", data=b"{"),
    "401": lambda api, _: api.get("/users/me"),
    "403": lambda api, anna: api.get("/admin/users", by=anna),
    "404": lambda api, _: api.get("/referral-code/x@example.com"),
    "404 of the router": lambda api, _: api.get("//nope"),
    "405": lambda api, _: api.patch("/users/me"),
    "413": lambda api, _: api.post("/auth/login", data=b" " * 20_000),
    "415": lambda api, _: api.post("/auth/login", data=b"{}"),
    "422": lambda api, _: api.post("/auth/login", {}),
    "HEAD": lambda api, anna: api.call("HEAD", "/users/me", by=anna),
    "health": lambda api, _: api.get("//health/ready"),
    "metrics": lambda api, _: api.get("//metrics"),
    "a page": lambda api, _: api.get("//docs"),
    "an asset": lambda api, _: api.get("//docs/assets/docs.js"),
    "the document": lambda api, _: api.get("//openapi.json"),
    "400 of the parser": lambda api, _: send(api, b"no HTTP\r\n\r\n"),
    "the list of problems": lambda api, _: api.get("//problems"),
    "a problem's page": lambda api, _: api.get("//problems/not-found"),
}


@pytest.mark.parametrize("ask", KINDS.values(), ids=KINDS)
async def test_every_answer_is_safe_in_a_browser_and_has_an_id(
    api: Api, anna: Person, ask: Ask
) -> None:
    answer = await ask(api, anna)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert answer.headers["Server"] == "referrals"
    assert len(answer.headers["X-Request-Id"]) == 32
    assert "Strict-Transport-Security" not in answer.headers


@pytest.mark.parametrize("ask", [KINDS[kind] for kind in ("200", "201", "401", "404", "422")])
async def test_no_answer_of_the_api_is_to_be_stored(api: Api, anna: Person, ask: Ask) -> None:
    assert (await ask(api, anna)).headers["Cache-Control"] == "no-store"


async def test_behind_https_browsers_are_to_stay_there(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    async with running(replace(settings, public_url="https://api.example.com")) as api:
        unreadable = (b"no HTTP\r\n\r\n", request("GET", "/" + "a" * 9000))
        answers = [
            await api.get("//health/live"),
            await api.get("//nope"),
            await api.get("//docs"),
            await api.get("//docs/assets/docs.js"),
            await api.call("OPTIONS", "/users/me"),
            *[await send(api, raw) for raw in unreadable],
        ]
        for answer in answers:
            assert answer.headers["Strict-Transport-Security"] == "max-age=63072000"


@pytest.mark.parametrize("sent", ["a", "0A-z._:9", "a" * 128])
async def test_a_valid_request_id_is_kept(api: Api, sent: str) -> None:
    for path in ("/users/me", "//nope", "//health/live"):
        answer = await api.get(path, headers={"X-Request-Id": sent})
        assert answer.headers["X-Request-Id"] == sent


@pytest.mark.parametrize("sent", [b"", b"a" * 129, b"two words", b"<a>", b'a"', b"\xff", b"a;b"])
async def test_any_other_is_replaced(api: Api, sent: bytes) -> None:
    answer = await send(api, request("GET", "/health/live", [b"X-Request-Id: " + sent]))
    assert len(answer.headers["X-Request-Id"]) == 32


async def test_two_requests_have_two_ids(api: Api) -> None:
    ids = {(await api.get("//health/live")).headers["X-Request-Id"] for _ in range(10)}
    assert len(ids) == 10
