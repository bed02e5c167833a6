"""Webhooks between processes: other people's libraries take them, and killed workers lose none."""

import asyncio
import base64
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from tests.e2e.peers import install_npm_packages, judged_by, new_client
from tests.e2e.processes import Service, run, service_process, workers_of
from tests.e2e.test_nothing_is_lost import all_done, let_claims_end
from tests.stand_ins.webhooks import Receiver
from tests.waiting import until

SCOPES = "events:write programme:read programme:manage"


@pytest.fixture
def service(environment: dict[str, str]) -> Iterator[Service]:
    with service_process(environment, WORKERS="2", WEBHOOK_NETWORKS="127.0.0.0/8") as service:
        yield service


@asynccontextmanager
async def company_of(service: Service) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield the session of a client that authenticates with each call."""
    client = new_client(service, confidential=True, options=[f"--scope={SCOPES}"])
    credentials = base64.b64encode(f"{client.client_id}:{client.secret}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}"}
    async with aiohttp.ClientSession(f"{service.url}/api/v1/", headers=headers) as session:
        yield session


async def call(company: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
    async with company.request(method, path, json=body) as answer:
        assert answer.status < 300, await answer.text()
        return await answer.json()


async def listen(company: aiohttp.ClientSession, receiver: Receiver) -> str:
    """Create an endpoint at the receiver, which then verifies; return its id."""
    endpoint = await call(company, "POST", "webhook-endpoints", {"url": receiver.url})
    path = f"webhook-endpoints/{endpoint['id']}/secret"
    receiver.secret = (await call(company, "GET", path))["secret"]
    endpoint_id: str = endpoint["id"]
    return endpoint_id


@pytest.fixture(scope="module")
def drivers() -> Path:
    return install_npm_packages()


async def test_libraries_for_javascript_verify_our_webhooks(
    service: Service, drivers: Path
) -> None:
    async with Receiver().serving() as receiver, company_of(service) as company:
        endpoint_id = await listen(company, receiver)
        path = f"webhook-endpoints/{endpoint_id}"
        await call(company, "POST", f"{path}/test")
        await until(lambda: receiver.has_got(1))
        first_secret = receiver.secret
        await call(company, "POST", f"{path}/rotate", {"overlap_hours": 1})
        await call(company, "POST", f"{path}/test")  # which both secrets sign
        await until(lambda: receiver.has_got(2))
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        webhooks = [
            {"body": got.body.decode(), "headers": {name: got.headers[name] for name in names}}
            for got in receiver.got
        ]
    told = {"secret": first_secret, "otherSecret": "whsec_" + "A" * 43 + "=", "webhooks": webhooks}
    seen = await asyncio.to_thread(judged_by, drivers, "webhooks.mjs", told)
    refused = "WebhookVerificationError"
    verdict = {
        "genuine": "verified",
        "ofAnother": refused,
        "tampered": refused,
        "replayed": refused,
    }
    assert seen == {"svix": [verdict] * 2, "standard": [verdict] * 2}


async def test_workers_that_are_killed_again_and_again_lose_no_webhook(service: Service) -> None:
    """Message and jobs are written in the transaction of what they tell."""
    answered, kills = set[str](), 8
    async with Receiver().serving() as receiver, company_of(service) as company:
        await listen(company, receiver)
        numbers = iter(range(100_000))
        stop = asyncio.Event()

        async def create() -> None:
            while not stop.is_set():
                external_id = f"u-{next(numbers)}"
                with suppress(aiohttp.ClientError, AssertionError):  # cut off, or 503
                    await call(company, "POST", "participants", {"external_id": external_id})
                    answered.add(external_id)

        creating = [asyncio.create_task(create()) for _ in range(4)]
        for kill in range(kills):
            known = len(receiver.got)
            await until(lambda known=known: receiver.has_got(known + 30), 30)  # type: ignore[misc]
            workers = workers_of(service.process.pid)
            os.kill(workers[kill % len(workers)], signal.SIGKILL)
        stop.set()
        await asyncio.gather(*creating)
        await let_claims_end(service)
        await all_done(service, seconds=60)
    told = [got.document["data"]["participant"]["external_id"] for got in receiver.got]
    assert receiver.refused == 0
    assert answered - set(told) == set()
    assert len(told) - len(set(told)) <= kills * 16


async def test_an_operator_lists_tests_enables_and_replays(service: Service) -> None:
    def does(*arguments: str) -> str:
        done = run("webhooks", *arguments, environment=service.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    async with Receiver().serving() as receiver, company_of(service) as company:
        endpoint_id = await listen(company, receiver)
        assert does("list") == f"{endpoint_id}\t127.0.0.1\tall types\tlive\n"
        sent = does("test", endpoint_id).removeprefix("webhook-id=").strip()
        await until(lambda: [got.message_id for got in receiver.got] == [sent])
        receiver.status = 410
        does("test", endpoint_id)

        async def disabled() -> bool:
            return "disabled 20" in await asyncio.to_thread(does, "list")

        await until(disabled)
        assert does("list").endswith(": gone\n")
        receiver.status = 204
        assert does("enable", endpoint_id).startswith(f"{endpoint_id} is enabled")
        assert does("replay", endpoint_id, "--since", "2020-01-01T00:00:00Z") == (
            "1 message will be sent again.\n"
        )
        await until(lambda: receiver.has_got(3))
        assert receiver.got[1].message_id == receiver.got[2].message_id
        again = does("replay", endpoint_id, "--since", "2020-01-01T00:00:00Z", "--all")
        assert again == "2 messages will be sent again.\n"
    nobody = run("webhooks", "test", str(uuid4()), environment=service.environment)
    assert (nobody.returncode, nobody.stderr) == (1, "There is no such webhook endpoint.\n")
    naive = ("replay", endpoint_id, "--since", "2020-01-01T00:00:00")
    assert run("webhooks", *naive, environment=service.environment).returncode == 2
