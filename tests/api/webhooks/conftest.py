"""A service that may send webhooks to loopback, and does so at once; a company that listens."""

import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from service.settings.settings import Settings
from service.use_cases import webhook_deliveries
from tests.company import Company, new_company
from tests.factories import Api, running
from tests.stand_ins.webhooks import Receiver
from tests.waiting import until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, webhook_networks=(ip_network("127.0.0.0/8"),))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_deliveries, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(webhook_deliveries, "SWEEP_SECONDS", 0.1)


@pytest.fixture
async def api(settings: Settings, database: asyncpg.Connection, redis: Redis) -> AsyncIterator[Api]:
    async with running(settings) as client:
        yield client


@pytest.fixture
async def public_only(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> AsyncIterator[Api]:
    """A service that sends webhooks to public addresses alone."""
    async with running(replace(settings, webhook_networks=())) as client:
        yield client


@pytest.fixture
async def company(api: Api) -> Company:
    return await new_company(api)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver().serving() as receiver:
        yield receiver


SLOW_HOST = "slow.example.internal"


@pytest.fixture
def slow_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make SLOW_HOST a name of loopback that takes a while to look up."""
    look_up = socket.getaddrinfo

    def take_long(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != SLOW_HOST:
            return look_up(host, *arguments, **options)
        time.sleep(0.7)
        return look_up("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", take_long)


async def listen(company: Company, receiver: Receiver, *types: str, host: str = "127.0.0.1") -> str:
    """Create an endpoint at the receiver, which then verifies; return its id."""
    url = receiver.url.replace("127.0.0.1", host)
    body: dict[str, Any] = {"url": url, "types": list(types)}
    created = await company.post("/webhook-endpoints", body)
    assert created.status == 201, created.body
    endpoint_id: str = created.json()["id"]
    receiver.secret = (await secrets_of(company, endpoint_id))["secret"]
    return endpoint_id


async def secrets_of(company: Company, endpoint_id: str) -> Any:
    return (await company.get(f"/webhook-endpoints/{endpoint_id}/secret")).json()


async def deliveries_of(company: Company, endpoint_id: str, query: str = "") -> list[Any]:
    """Return the newest deliveries."""
    listed = await company.get(f"/webhook-endpoints/{endpoint_id}/deliveries{query}")
    assert listed.status == 200, listed.body
    items: list[Any] = listed.json()["items"]
    return items


async def send_test(company: Company, endpoint_id: str) -> str:
    """Have a test sent; return the message's id."""
    sent = await company.post(f"/webhook-endpoints/{endpoint_id}/test")
    assert sent.status == 202, sent.body
    message_id: str = sent.json()["message_id"]
    return message_id


async def until_ended(company: Company, endpoint_id: str) -> list[Any]:
    """Return the deliveries once none is pending."""

    async def look() -> list[Any]:
        if await deliveries_of(company, endpoint_id, "?state=pending"):
            return []
        return await deliveries_of(company, endpoint_id)

    ended: list[Any] = await until(look)
    return ended
