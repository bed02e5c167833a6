"""What Prometheus reads: the names are part of what operators rely on."""

import asyncio
import re
from dataclasses import replace

import aiohttp
import asyncpg
import pytest
from aiohttp import web

from service.api.http.runner import Runner
from service.app import create_metrics_app
from service.domain.rate_limits import RateLimit
from service.settings.settings import Settings
from tests.api.conftest import no_jobs
from tests.api.wire import request, send
from tests.engines import redis_trouble
from tests.factories import Api, Person, running

Labels = tuple[tuple[str, str], ...]


async def measured(api: Api) -> dict[tuple[str, Labels], float]:
    """Return every sample, by its name and labels."""
    answer = await api.get("//metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", answer.body.decode(), re.MULTILINE)
    return {
        (name, tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels)))): float(value)
        for name, labels, value in samples
    }


async def added(
    api: Api, before: dict[tuple[str, Labels], float], name: str, **labels: str
) -> float:
    """Return by how much a sample has grown since."""
    key = (name, tuple(sorted(labels.items())))
    return (await measured(api))[key] - before.get(key, 0)


async def test_requests_are_measured_by_route_and_status(api: Api, anna: Person) -> None:
    before = await measured(api)
    for _ in range(3):
        await api.get("/users/me", by=anna)
    await api.get("/users/me")
    await api.get("//nope")
    await api.call("PROPFIND", "//nope")
    name = "http_request_duration_seconds_count"
    route = "/api/v1/users/me"
    assert await added(api, before, name, method="GET", route=route, status="200") == 3
    assert await added(api, before, name, method="GET", route=route, status="401") == 1
    assert await added(api, before, name, method="GET", route="none", status="404") == 1
    assert await added(api, before, name, method="other", route="none", status="404") == 1
    bucket = "http_request_duration_seconds_bucket"
    labels = {"method": "GET", "route": route, "status": "200", "le": "+Inf"}
    assert await added(api, before, bucket, **labels) == 3


async def test_what_the_cache_was_good_for_is_counted(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    await api.new_code(anna)
    await no_jobs(database)  # one empties the cache of the code once more
    before = await measured(api)
    for _ in range(3):
        await api.get(f"/referral-code/{anna.email}")
    assert await added(api, before, "cache_reads_total", kind="code", result="miss") == 1
    assert await added(api, before, "cache_reads_total", kind="code", result="hit") == 2
    assert (await measured(api))[("redis_circuit_breaker_open", ())] == 0


async def test_that_redis_is_away_is_told(settings: Settings, database: asyncpg.Connection) -> None:
    async with redis_trouble.refusing("") as url, running(replace(settings, redis_url=url)) as api:
        before = await measured(api)
        await api.get("/referral-code/nobody@example.com")
        assert await added(api, before, "cache_reads_total", kind="code", result="away") == 1
        assert before[("redis_circuit_breaker_open", ())] == 1


async def test_connections_hashes_and_refusals_are_told(
    settings: Settings, database: asyncpg.Connection
) -> None:
    limited = replace(settings, rate_limit_lookup=RateLimit(1, 60), database_pool_size=7)
    async with running(limited) as api:
        before = await measured(api)
        await api.get("/referral-code/nobody@example.com")
        await api.get("/referral-code/nobody@example.com")
        assert await added(api, before, "rate_limited_total", limit="lookup") == 1
        now = await measured(api)
        assert now[("database_connections", (("state", "limit"),))] == 7
        async with asyncio.timeout(5):  # the service's own loops may be using the only one
            while not (await measured(api))[("database_connections", (("state", "idle"),))]:
                await asyncio.sleep(0.02)
        assert now[("database_connections", (("state", "in_use"),))] >= 0
        assert now[("password_hashes_pending", ())] == 0


async def test_while_the_database_is_away_the_rest_is_told(settings: Settings) -> None:
    away = replace(settings, database_url="postgresql://127.0.0.1:1/nowhere")
    async with running(away) as api:
        assert (await measured(api))[("password_hashes_pending", ())] == 0


@pytest.mark.parametrize(
    "target",
    [
        "/%6detrics",
        "/metric%73",
        "//metrics",
        "/metrics/",
        "/./metrics",
        "/health/../metrics",
        "/metrics;x",
        "/metrics%3Fx",
        "/metrics%2F",
        "/METRICS",
        "/metrics%00",
    ],
)
async def test_no_other_spelling_passes_by_a_proxy_that_hides_them(api: Api, target: str) -> None:
    for method in ("GET", "HEAD"):
        answer = await send(api, request(method, target))
        assert answer.status == 404, method
        assert b"http_request" not in answer.body


async def test_their_own_spelling_may_have_a_query(api: Api) -> None:
    for target in ("/metrics", "/metrics?", "/metrics?name[]=up"):
        assert (await send(api, request("GET", target))).status == 200


async def test_nobody_is_named(api: Api, anna: Person) -> None:
    code = await api.new_code(anna)
    await api.get(f"/referral-code/{anna.email}")
    text = (await api.get("//metrics")).body.decode()
    for secret in (anna.email, anna.user_id, anna.access_token, code):
        assert secret not in text


async def test_nothing_can_be_written_to_a_port_of_their_own(api: Api) -> None:
    runner = Runner(create_metrics_app(api.app), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        url = f"http://{host}:{port}/api/v1/users/me"
        async with aiohttp.ClientSession() as session, session.post(url) as answer:
            assert answer.status == 404
    finally:
        await runner.cleanup()
