"""Receivers that hang delay no others."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from service.use_cases import webhook_deliveries
from tests.api.webhooks.conftest import listen
from tests.company import Company
from tests.stand_ins.webhooks import Got, Receiver
from tests.waiting import until

ENDPOINTS, EVENTS = 10, 30


async def delays(company: Company, *, hanging: int) -> list[float]:
    """Return, sorted, the seconds from an event's answer to its arrival at those who answer."""
    found: list[float] = []
    answered: dict[int, float] = {}
    arrived: list[tuple[int, float]] = []

    def note(got: Got) -> None:
        arrived.append((got.document["data"]["version"], got.at))

    async with AsyncExitStack() as stack:
        receivers = [
            await stack.enter_async_context(Receiver().serving()) for _ in range(ENDPOINTS)
        ]
        endpoint_ids = [await listen(company, one, "programme.changed") for one in receivers]
        for number, receiver in enumerate(receivers):
            if number < hanging:
                receiver.hanging = True
            else:
                receiver.when_got = note
        for _ in range(EVENTS):
            version = await company.use_rules({"qualify": {"on": "signup"}, "rewards": []})
            answered[version] = time.monotonic()
        await until(lambda: len(arrived) == EVENTS * (ENDPOINTS - hanging), 30)
        found = sorted(at - answered[version] for version, at in arrived)
        paths = [f"/webhook-endpoints/{endpoint_id}" for endpoint_id in endpoint_ids]
        await asyncio.gather(*map(company.delete, paths))
    return found


async def test_half_of_ten_hang_and_the_others_wait_no_longer_than_twice_as_long(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without places for each endpoint, they would wait until the attempts time out."""
    monkeypatch.setattr(webhook_deliveries, "POLL_SECONDS", 0.5)
    alone = await delays(company, hanging=0)
    beside = await delays(company, hanging=ENDPOINTS // 2)
    assert p95(beside) <= max(2 * p95(alone), 0.5)


def p95(sorted_values: list[float]) -> float:
    return sorted_values[int(len(sorted_values) * 0.95)]


async def test_receivers_that_begin_to_hang_delay_others_for_a_second_at_most(
    company: Company,
) -> None:
    """With many attempts under way to one that was fast, its places are free again soon."""
    async with Receiver().serving() as hanging, Receiver().serving() as prompt:
        await listen(company, hanging, "participant.created")
        await listen(company, prompt, "programme.changed")
        for _ in range(30):
            await company.new_referrer()
        await until(lambda: hanging.has_got(30))
        hanging.hanging = True
        for _ in range(40):
            await company.new_referrer()
        await until(lambda: hanging.has_got(30 + 10))
        began = time.monotonic()
        await company.patch("/programmes/default", {"paused": True})
        await until(lambda: prompt.got)
        assert time.monotonic() - began < 3
        hanging.hanging = False
        await until(lambda: hanging.has_got(70), 20)
