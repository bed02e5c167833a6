"""What operators see of webhooks, and what becomes of old ones."""

from datetime import timedelta

import asyncpg

from service.api.http.app_keys import SERVICES
from tests.api.test_metrics import added, measured
from tests.api.webhooks.conftest import listen, send_test, until_ended
from tests.company import Company
from tests.stand_ins.webhooks import Receiver
from tests.waiting import until


async def test_attempts_and_endpoints_are_measured(company: Company, receiver: Receiver) -> None:
    before = await measured(company.api)
    endpoint_id = await listen(company, receiver)
    await send_test(company, endpoint_id)
    await until_ended(company, endpoint_id)
    name = "webhook_attempts_total"
    assert await added(company.api, before, name, result="delivered") == 1
    endpoints = "webhook_endpoints"
    assert (await measured(company.api))[endpoints, (("state", "live"),)] == 1
    receiver.script = [500]
    await send_test(company, endpoint_id)

    async def rests() -> bool:
        return (await measured(company.api))[endpoints, (("state", "resting"),)] == 1

    await until(rests)
    assert await added(company.api, before, name, result="postponed") == 1
    pending = ("jobs_pending", (("kind", "delivery"),))
    assert (await measured(company.api))[pending] == 1
    await company.patch(f"/webhook-endpoints/{endpoint_id}", {"disabled": True})
    assert (await measured(company.api))[endpoints, (("state", "disabled"),)] == 1
    assert (await measured(company.api))[pending] == 0


async def test_after_thirty_days_a_message_is_forgotten(
    company: Company, receiver: Receiver, database: asyncpg.Connection
) -> None:
    kept, deleted = await listen(company, receiver), await listen(company, receiver)
    receiver.secret = None
    for endpoint_id in (kept, deleted):
        await send_test(company, endpoint_id)
        await until_ended(company, endpoint_id)
    assert (await company.delete(f"/webhook-endpoints/{deleted}")).status == 204

    async def rows() -> list[int]:
        tables = ("messages", "deliveries", "attempts", "endpoints")
        return [
            await database.fetchval(f"SELECT count(*) FROM webhook_{table}") for table in tables
        ]

    housekeeping = company.api.app[SERVICES].housekeeping
    company.api.clock.ahead = timedelta(days=29, hours=23)
    await housekeeping.tidy_up()
    assert await rows() == [2, 2, 2, 2]
    company.api.clock.ahead = timedelta(days=30, minutes=1)
    await housekeeping.tidy_up()
    assert await rows() == [0, 0, 0, 1]


async def test_a_delivery_whose_message_is_forgotten_ends(
    company: Company, receiver: Receiver, database: asyncpg.Connection
) -> None:
    endpoint_id = await listen(company, receiver)
    receiver.script = [500]
    await send_test(company, endpoint_id)
    await until(lambda: receiver.got)
    await until_postponed(database)
    await database.execute("DELETE FROM webhook_messages")
    company.api.clock.ahead = timedelta(days=2)

    async def is_gone() -> bool:
        jobs: int = await database.fetchval("SELECT count(*) FROM jobs WHERE kind = 'delivery'")
        return jobs == 0

    await until(is_gone)
    assert len(receiver.got) == 1


async def until_postponed(database: asyncpg.Connection) -> None:
    async def is_postponed() -> bool:
        found: bool = await database.fetchval(
            "SELECT EXISTS (SELECT FROM jobs WHERE last_error IS NOT NULL)"
        )
        return found

    await until(is_postponed)
