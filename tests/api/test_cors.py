"""Which scripts of other origins may call the API (Fetch, 3.2)."""

from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest
from redis.asyncio import Redis

from service.settings import Settings
from tests.api.assertions import assert_problem
from tests.factories import Answer, Api, running

OURS = "https://app.example.com"
PREFLIGHT = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "a"}


@pytest.fixture
async def cors(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> AsyncIterator[Api]:
    """A service that scripts of OURS may call."""
    async with running(replace(settings, cors_origins=frozenset({OURS}))) as api:
        yield api


def varying(answer: Answer) -> set[str]:
    """Return the request headers that the answer depends on."""
    return set(", ".join(answer.headers.getall("Vary")).split(", "))


@pytest.mark.parametrize("path", ["/users/me", "//health/live", "/nope", "//openapi.json"])
async def test_a_script_of_our_origin_may_read_the_answer(cors: Api, path: str) -> None:
    answer = await cors.get(path, headers={"Origin": OURS})
    assert answer.headers["Access-Control-Allow-Origin"] == OURS
    assert "Origin" in varying(answer)
    exposed = set(answer.headers["Access-Control-Expose-Headers"].split(", "))
    assert exposed >= {"X-Request-Id", "Retry-After", "RateLimit", "Idempotency-Replayed"}
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://app.example.com", OURS + ".evil.example", OURS + ":1"],
)
async def test_a_script_of_another_origin_may_not(cors: Api, origin: str) -> None:
    answer = await cors.get("//health/live", headers={"Origin": origin})
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "Origin" in varying(answer), "or a cache gives this to a script of ours"
    preflight = await cors.call("OPTIONS", "/users/me", headers={"Origin": origin, **PREFLIGHT})
    assert_problem(preflight, 405, "method-not-allowed")
    assert "Access-Control-Allow-Origin" not in preflight.headers


async def test_a_preflight_says_what_may_be_sent(cors: Api) -> None:
    for path in ("/referral-code", "/nope"):
        answer = await cors.call("OPTIONS", path, headers={"Origin": OURS, **PREFLIGHT})
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["Access-Control-Allow-Origin"] == OURS
        methods = answer.headers["Access-Control-Allow-Methods"].split(", ")
        assert methods == ["GET", "POST", "PUT", "PATCH", "DELETE"]
        allowed = set(answer.headers["Access-Control-Allow-Headers"].split(", "))
        assert allowed == {"Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"}
        assert answer.headers["Access-Control-Max-Age"] == "600"


async def test_options_that_is_no_preflight_is_not_allowed(cors: Api) -> None:
    answer = await cors.call("OPTIONS", "/users/me", headers={"Origin": OURS})
    assert_problem(answer, 405, "method-not-allowed")
    assert answer.headers["Access-Control-Allow-Origin"] == OURS


async def test_with_a_star_any_origin_may(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    async with running(replace(settings, cors_origins=frozenset("*"))) as api:
        answer = await api.get("//health/live", headers={"Origin": "https://any.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "https://any.example"


async def test_without_the_setting_none_may(api: Api) -> None:
    answer = await api.get("//health/live", headers={"Origin": OURS})
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "Vary" not in answer.headers
