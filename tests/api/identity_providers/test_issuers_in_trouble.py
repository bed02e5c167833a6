"""Issuers that are slow, broken or malicious, and what operators see of them."""

import asyncio
import gzip
import json
import logging
import socket
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from service.api.http.app_keys import ACCESS_LOG
from service.domain.rate_limits import RateLimit
from service.settings.settings import Settings
from service.telemetry.logs import JsonFormatter
from tests.api.assertions import assert_problem
from tests.api.issuer import (
    CLIENT_SECRET,
    EMAIL,
    SOMEBODY,
    TROUBLE,
    Issuer,
    answering,
    begin,
    come_back,
    hang,
    sign_in,
    signed_in,
)
from tests.factories import Api, running
from tests.waiting import until


@pytest.mark.parametrize("name", TROUBLE)
@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/jwks"])
async def test_an_issuer_in_trouble_is_503_and_soon(
    api: Api, issuer: Issuer, database: asyncpg.Connection, path: str, name: str
) -> None:
    issuer.instead[path] = TROUBLE[name]
    async with asyncio.timeout(5):
        if path.startswith("/.well-known"):
            answer = await api.get("/auth/providers/corp/start", allow_redirects=False)
        else:
            answer = await sign_in(api, issuer)
    if path == "/token" and name in {"a list", "null"}:
        assert_problem(answer, 403, "sign-in-refused")
    else:
        assert_problem(answer, 503, "provider-unavailable")
        assert answer.headers["Retry-After"] == "5"
    issuer.instead.clear()
    assert (await sign_in(api, issuer)).status == 200


async def test_what_was_compressed_unasked_is_not_unpacked(api: Api, issuer: Issuer) -> None:
    """64 KiB may unpack to 64 MiB."""
    keys = json.dumps({"keys": [issuer.keys[0].to_public_jwk()]}).encode()
    packed = answering(gzip.compress(keys), headers={"Content-Encoding": "gzip"})
    issuer.instead["/jwks"] = packed
    assert_problem(await sign_in(api, issuer), 503, "provider-unavailable")


async def test_a_hanging_issuer_holds_up_nobody_else(api: Api, issuer: Issuer) -> None:
    issuer.instead["/.well-known/openid-configuration"] = hang
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(api.get("/auth/providers/corp/start")) for _ in range(50)]
        await until(lambda: len(issuer.calls) == 50)
        async with asyncio.timeout(0.3):
            assert (await api.get("//health/live")).status == 200
            assert (await api.get("/auth/providers")).status == 200
    assert {task.result().status for task in waiting} == {503}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/jwks"])
async def test_a_redirect_is_not_followed(api: Api, issuer: Issuer, path: str, status: int) -> None:
    """Otherwise an issuer could make the service call its own network, as 169.254.169.254."""
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.setblocking(False)
        location = f"http://127.0.0.1:{inside.getsockname()[1]}/latest/meta-data"
        issuer.instead[path] = answering(b"{}", status, {"Location": location})
        if path.startswith("/.well-known"):
            answer = await api.get("/auth/providers/corp/start", allow_redirects=False)
        else:
            answer = await sign_in(api, issuer)
        assert_problem(answer, 503, "provider-unavailable")
        with pytest.raises(BlockingIOError):
            inside.accept()


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"token_endpoint": "http://169.254.169.254/latest/meta-data"},
        {"token_endpoint": "file:///etc/passwd"},
        {"token_endpoint": "http://127.0.0.1:70000/"},
        {"token_endpoint": "http://[::1"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "http://issuer.example/\r\nSet-Cookie: a=b"},
        {"authorization_endpoint": "https://issuer.example/#fragment"},
        {"jwks_uri": "http://issuer.example/jwks"},
        {"jwks_uri": 5},
        {"jwks_uri": None},
    ],
    ids=str,
)
async def test_a_description_that_leads_astray_is_not_followed(
    api: Api, issuer: Issuer, change: dict[str, Any]
) -> None:
    issuer.description |= change
    answer = await api.get("/auth/providers/corp/start", allow_redirects=False)
    assert_problem(answer, 503, "provider-unavailable")
    assert issuer.calls == ["/.well-known/openid-configuration"]


@pytest.mark.parametrize("error", ["invalid_client", "unauthorized_client", "<script>", "x" * 999])
async def test_a_refusal_that_is_the_operators_matter_is_no_fault_of_the_users(
    api: Api, issuer: Issuer, error: str
) -> None:
    body = b'{"error": "%b"}' % error.encode()
    issuer.instead["/token"] = answering(body, 400)
    answer = await sign_in(api, issuer)
    assert_problem(answer, 503, "provider-unavailable")
    assert error not in answer.body.decode()


# What operators see


async def test_no_secret_gets_into_the_log(
    api: Api, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    begun = await begin(api)
    code = issuer.grant(begun.request)
    answer = await come_back(api, begun, code=code, iss=issuer.url)
    issuer.forge = SOMEBODY.sign
    await sign_in(api, issuer)
    issuer.instead["/token"] = TROUBLE["truncated JSON"]
    await sign_in(api, issuer)
    secrets = {
        code,
        CLIENT_SECRET,
        EMAIL,
        begun.request["state"],
        begun.request["nonce"],
        begun.cookie.partition("=")[2],
        answer.json()["access_token"],
        *issuer.tokens,
    }
    api.app[ACCESS_LOG].flush()
    ours = [record for record in caplog.records if record.name.startswith("service")]
    lines = [line for record in ours for line in JsonFormatter().format(record).splitlines()]
    assert len(lines) >= 5
    told = "\n".join(f"{record.getMessage()} {vars(record)}" for record in ours)
    assert not [secret for secret in secrets if secret in told]


async def test_calls_are_counted_by_provider_and_result(api: Api, issuer: Issuer) -> None:
    async def count(result: str) -> float:
        text = (await api.get("//metrics")).body.decode()
        name = f'provider_calls_total{{provider="corp",result="{result}"}} '
        return sum(float(line.split()[-1]) for line in text.splitlines() if name in line)

    before = {result: await count(result) for result in ("ok", "refused", "failed")}
    await signed_in(api, issuer)  # the description, the token, the keys
    await come_back(api, await begin(api), code="guessed", iss=issuer.url)
    issuer.instead["/token"] = TROUBLE["500"]
    await sign_in(api, issuer)
    assert await count("ok") == before["ok"] + 3
    assert await count("refused") == before["refused"] + 1
    assert await count("failed") == before["failed"] + 1


async def test_starts_are_limited_as_logins_are(api: Api, settings: Settings) -> None:
    async with running(replace(settings, rate_limit_login=RateLimit(2, 60))) as other:
        statuses = [
            (await other.get("/auth/providers/corp/start", allow_redirects=False)).status
            for _ in range(3)
        ]
    assert statuses == [303, 303, 429]
