"""Races of webhooks, each with what to remove in order to lose it."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
from uuid6 import uuid7

from service.domain.webhook_deliveries import Delivery, DisabledReason, Endpoint, Outcome
from service.domain.webhook_deliveries import FailureReason as Reason
from service.domain.webhooks import participant_created
from service.postgresql.database import Database, Repositories
from service.use_cases.webhooks import announce
from tests.sql.racing import NOW, until_blocked

URL = "https://hooks.example.com/"
LATER = NOW + timedelta(seconds=30)


async def new_endpoint(transactions: Database, slot: int = 1) -> UUID:
    endpoint = Endpoint(endpoint_id=uuid7(), url=URL, types=(), created_at=NOW)
    async with transactions.transaction() as repositories:
        assert await repositories.webhook_endpoints.add(endpoint, slot)
    return endpoint.endpoint_id


async def new_messages(transactions: Database, number: int) -> None:
    async with transactions.transaction() as repositories:
        announce(
            repositories, NOW, *(participant_created("default", uuid7()) for _ in range(number))
        )


async def claim(
    repositories: Repositories, now: datetime = NOW, places: int = 16
) -> Sequence[Delivery]:
    until = now + timedelta(seconds=30)
    return await repositories.webhook_deliveries.claim(now, until, 16, places, {})


async def fail(transactions: Database, delivery: Delivery, now: datetime) -> None:
    async with transactions.transaction() as repositories:
        await repositories.webhook_deliveries.fail(
            delivery,
            Outcome(status=500, milliseconds=1),
            now,
            resume_at=now + timedelta(seconds=1),
            due_at=now + timedelta(seconds=5),
            reason=Reason.GAVE_UP,
        )


async def test_one_claim_alone_finds_out_whether_an_endpoint_answers_again(
    transactions: Database,
) -> None:
    """Without FOR NO KEY UPDATE SKIP LOCKED in CLAIM, the second would send one, too."""
    await new_endpoint(transactions)
    await new_messages(transactions, 5)
    async with transactions.transaction() as repositories:
        [first] = await claim(repositories, places=1)
    await fail(transactions, first, NOW)
    soon = NOW + timedelta(seconds=2)
    async with transactions.transaction() as one, transactions.transaction() as other:
        [probe] = await claim(one, soon)
        assert probe.is_probe
        assert await claim(other, soon) == []
    async with transactions.transaction() as repositories:
        assert await claim(repositories, soon) == []  # it rests until the probe has ended
    await fail(transactions, probe, soon)
    async with transactions.transaction() as repositories:
        assert len(await claim(repositories, soon + timedelta(seconds=2))) == 1


async def test_who_disables_an_endpoint_sees_a_claim_that_is_being_made(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without FOR SHARE in CLAIM, disabling would not wait, and would find nothing under way."""
    endpoint_id = await new_endpoint(transactions)
    await new_messages(transactions, 1)

    async def disable() -> list[tuple[UUID, int]]:
        async with transactions.transaction() as repositories:
            await repositories.webhook_endpoints.disable(endpoint_id, DisabledReason.GONE, NOW)
        async with transactions.autocommit() as repositories:
            return await repositories.jobs.under_way(endpoint_id, NOW)

    async with transactions.transaction() as repositories:
        [delivery] = await claim(repositories)
        disabling = await until_blocked(database, disable())
    assert await disabling == [(delivery.job_id, 1)]


async def test_nothing_is_claimed_of_an_endpoint_that_is_being_disabled(
    transactions: Database,
) -> None:
    """Without FOR SHARE SKIP LOCKED in CLAIM, it would be as if it were enabled."""
    endpoint_id = await new_endpoint(transactions)
    await new_messages(transactions, 1)
    async with transactions.transaction() as disabling, transactions.transaction() as claiming:
        await disabling.webhook_endpoints.disable(endpoint_id, DisabledReason.GONE, NOW)
        assert await claim(claiming) == []


async def test_claims_of_one_endpoint_do_not_wait_for_each_other(transactions: Database) -> None:
    await new_endpoint(transactions)
    await new_messages(transactions, 6)
    async with transactions.transaction() as one, transactions.transaction() as other:
        first, second = await claim(one, places=3), await claim(other, places=3)
    assert len({delivery.job_id for delivery in (*first, *second)}) == 6


async def test_a_backlog_of_one_endpoint_does_not_hold_up_the_others(
    transactions: Database,
) -> None:
    """Without turns, the sixteen oldest would be claimed."""
    crowded = await new_endpoint(transactions)
    await new_messages(transactions, 100)
    quiet = await new_endpoint(transactions, 2)
    async with transactions.transaction() as repositories:
        announce(repositories, NOW + timedelta(seconds=1), participant_created("default", uuid7()))
    async with transactions.transaction() as repositories:
        claimed = await claim(repositories, NOW + timedelta(seconds=2))
    assert len(claimed) == 16
    assert {delivery.endpoint_id for delivery in claimed} == {crowded, quiet}


async def test_a_message_comes_with_its_cause_or_not_at_all(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Outside the transaction it would be there without its cause."""
    await new_endpoint(transactions)

    async def undone() -> None:
        async with transactions.transaction() as repositories:
            announce(repositories, NOW, participant_created("default", uuid7()))
            raise RuntimeError

    await asyncio.gather(undone(), return_exceptions=True)
    assert await database.fetchval("SELECT count(*) FROM webhook_messages") == 0
    assert await database.fetchval("SELECT count(*) FROM jobs") == 0


async def test_what_a_savepoint_undoes_is_not_announced(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without forgetting it in `savepoint`, companies would be told what never was."""
    await new_endpoint(transactions)
    before, within, after = [participant_created("default", uuid7()) for _ in range(3)]

    async def undo(repositories: Repositories) -> None:
        async with repositories.savepoint():
            announce(repositories, NOW, within)
            raise LookupError

    for told in ([before], []):
        async with transactions.transaction() as repositories:
            announce(repositories, NOW, *told)
            with suppress(LookupError):
                await undo(repositories)
            announce(repositories, NOW, after)
    bodies = [row["body"] for row in await database.fetch("SELECT body FROM webhook_messages")]
    assert sorted(bodies) == sorted(one.body(NOW) for one in (before, after, after))


async def test_of_two_that_retry_a_delivery_one_plans_it(
    transactions: Database, database: asyncpg.Connection
) -> None:
    """Without `state <> 'pending'` in RETRY, there would be two jobs."""
    endpoint_id = await new_endpoint(transactions)
    await new_messages(transactions, 1)
    async with transactions.transaction() as repositories:
        [delivery] = await claim(repositories)
        outcome = Outcome(status=204, milliseconds=1)
        await repositories.webhook_deliveries.succeed(delivery, outcome, NOW)

    async def retry() -> bool:
        async with transactions.transaction() as repositories:
            return await repositories.webhook_deliveries.retry(
                endpoint_id, delivery.message_id, LATER
            )

    async with transactions.transaction() as repositories:
        await repositories.webhook_deliveries.retry(endpoint_id, delivery.message_id, LATER)
        second = await until_blocked(database, retry())
    assert await second
    assert await database.fetchval("SELECT count(*) FROM jobs") == 1
