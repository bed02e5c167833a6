"""What operators see of the ledger: its check, bit by bit and as a whole, and waiting reviews."""

import asyncio
import logging

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.use_cases import ledger_check
from tests.api.test_rewards import FRIEND, bought, use_rewards
from tests.company import new_company
from tests.factories import Api


async def figure(api: Api, name: str) -> float:
    text = (await api.get("//metrics")).body.decode()
    [line] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


async def test_a_difference_is_measured_until_a_round_finds_none(
    api: Api, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_check, "BATCH", 2)
    company = await new_company(api)
    await use_rewards(company, FRIEND)
    for _ in range(2):
        await bought(company, await company.new_referrer())
    check = api.app[SERVICES].ledger_check
    rounds = 3  # of four participants, two at a time, and a look that finds no more
    for _ in range(rounds):
        assert await check.check_some() == []
    assert await figure(api, "ledger_differences") == 0
    await database.execute("UPDATE balances SET available = available + 1")
    found = [difference for _ in range(rounds) for difference in await check.check_some()]
    assert len(found) == 2
    assert await figure(api, "ledger_differences") == 2
    await database.execute("UPDATE balances SET available = available - 1")
    for _ in range(rounds):
        await check.check_some()
    assert await figure(api, "ledger_differences") == 0


async def test_a_difference_is_logged(
    api: Api,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    company = await new_company(api)
    await use_rewards(company, FRIEND)
    await bought(company, await company.new_referrer())
    await database.execute("UPDATE balances SET pending = 1")
    monkeypatch.setattr(ledger_check, "PERIOD_SECONDS", 0.05)
    loop = asyncio.create_task(api.app[SERVICES].ledger_check.run())
    try:
        with caplog.at_level(logging.ERROR):
            async with asyncio.timeout(5):
                while "the ledger is wrong" not in caplog.text:
                    await asyncio.sleep(0.02)
    finally:
        loop.cancel()


async def test_waiting_reviews_are_measured(api: Api) -> None:
    company = await new_company(api)
    await use_rewards(company, FRIEND)
    assert await figure(api, "reviews_open") == 0
    assert await figure(api, "reviews_oldest_seconds") == 0
    referrer = await company.new_referrer(device_id="d-1")
    await company.sign_up(referrer["code"], device_id="d-1")
    assert await figure(api, "reviews_open") == 1
    assert await figure(api, "reviews_oldest_seconds") > 0
