"""Which scripts of other origins may call the API (Fetch, 3.2)."""

from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest
from redis.asyncio import Redis

from service.settings.settings import Settings, read_settings
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


OWN = {"Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"}


def allowed_headers(answer: Answer) -> set[str]:
    return set(answer.headers["Access-Control-Allow-Headers"].split(", "))


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
        asked = {"Origin": OURS, "Access-Control-Request-Method": "PATCH"}
        answer = await cors.call("OPTIONS", path, headers=asked)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["Access-Control-Allow-Origin"] == OURS
        methods = answer.headers["Access-Control-Allow-Methods"].split(", ")
        assert methods == ["GET", "POST", "PUT", "PATCH", "DELETE"]
        assert allowed_headers(answer) == OWN
        assert answer.headers["Access-Control-Max-Age"] == "600"
        assert varying(answer) >= {"Origin", "Access-Control-Request-Headers"}


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("authorization,baggage,sentry-trace,traceparent", {"baggage", "sentry-trace"}),
        ("traceparent , tracestate,,", {"traceparent", "tracestate"}),
        ("CONTENT-TYPE, x_under.score", {"x_under.score"}),
        (", ".join(f"x-{number}" for number in range(50)), {"x-0", "x-49"}),
    ],
)
async def test_a_script_may_send_the_headers_that_it_asks_for(
    cors: Api, asked: str, allowed: set[str]
) -> None:
    """Tracing adds some that no service can know."""
    headers = {"Origin": OURS, **PREFLIGHT, "Access-Control-Request-Headers": asked}
    answer = await cors.call("OPTIONS", "/auth/login", headers=headers)
    assert answer.status == 204
    given = allowed_headers(answer)
    names = {name.strip().lower() for name in asked.split(",")} - {""}
    assert {name.lower() for name in given} == names | {name.lower() for name in OWN}
    assert given >= allowed | OWN
    assert len(given) == len({name.lower() for name in given}), "none comes twice"


@pytest.mark.parametrize(
    "asked",
    [
        "x-good, not a token",
        "x-good, bad;value",
        "x-good, b\u00e4d",
        "x" * 65,
        ", ".join(f"x-{number}" for number in range(51)),
    ],
)
async def test_but_not_what_is_no_header_or_far_too_many(cors: Api, asked: str) -> None:
    headers = {"Origin": OURS, **PREFLIGHT, "Access-Control-Request-Headers": asked}
    answer = await cors.call("OPTIONS", "/auth/login", headers=headers)
    assert answer.status == 204
    assert allowed_headers(answer) == OWN


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
async def test_the_page_of_oauth_is_for_no_script(cors: Api, method: str) -> None:
    for path in ("//oauth/authorize", "//oauth/authorize?client_id=a", "//oauth/%61uthorize"):
        answer = await cors.call(method, path, headers={"Origin": OURS, **PREFLIGHT})
        assert not [name for name in answer.headers if name.startswith("Access-Control-Allow")]


WILD = "https://*.example.com"


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        (WILD, "https://app.example.com", True),
        (WILD, "https://a.b.example.com", True),
        (WILD, "https://my_app-2.example.com", True),
        (WILD, "https://example.com", False),
        (WILD, "https://.example.com", False),
        (WILD, "http://app.example.com", False),
        (WILD, "https://app.example.com:8443", False),
        (WILD, "https://app.example.com.evil.example", False),
        (WILD, "https://evilexample.com", False),
        (WILD, "https://evil.example/.example.com", False),
        (WILD, "https://evil.example#.example.com", False),
        (WILD, "https://evil@app.example.com", False),
        (WILD, "https://app.exampleXcom", False),
        (WILD, "null", False),
        ("https://*.example.com:8443", "https://app.example.com:8443", True),
        ("https://*.example.com:8443", "https://app.example.com", False),
        (f"{WILD},https://other.example", "https://other.example", True),
        ("HTTPS://App.Example.com:443/", "https://app.example.com", True),
        ("http://localhost:80", "http://localhost", True),
    ],
)
async def test_a_star_stands_for_all_subdomains_and_the_rest_is_as_browsers_send_it(
    environment: dict[str, str],
    database: asyncpg.Connection,
    redis: Redis,
    origins: str,
    origin: str,
    allowed: bool,
) -> None:
    async with running(read_settings({**environment, "CORS_ORIGINS": origins})) as api:
        answer = await api.get("//health/live", headers={"Origin": origin})
        told = answer.headers.get("Access-Control-Allow-Origin")
        assert told == (origin if allowed else None)
        preflight = await api.call("OPTIONS", "/users/me", headers={"Origin": origin, **PREFLIGHT})
        assert preflight.status == (204 if allowed else 405)


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
