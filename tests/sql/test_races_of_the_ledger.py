"""What payouts do beside one another, beside refunds, and when they are repeated.

Each race says what to remove in order to see it lost. After each the ledger proves itself.
"""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from uuid6 import uuid7

from service.domain.errors import BalanceTooLow, IdReused, TransferNotFound
from service.settings.settings import Settings
from service.use_cases.participants import ShownParticipant
from tests.sql.racing import until_blocked
from tests.sql.rewarding import FRIEND, Shop, new_id, open_shop


@pytest.fixture
async def shop(settings: Settings, database: asyncpg.Connection) -> AsyncIterator[Shop]:
    async with open_shop(settings, database) as shop:
        await shop.use_rules(FRIEND)
        yield shop
        found = [difference async for difference in shop.services.ledger_check.check_all()]
        assert found == []


async def rich(shop: Shop, amount: int = 500) -> ShownParticipant:
    referrer = await shop.referrer()
    await shop.adjust(new_id("opening"), referrer, amount)
    return referrer


async def test_one_redemption_id_32_times_at_once_pays_once(shop: Shop) -> None:
    """Without `transfers_external_once` it would be paid 32 times. With the money before the id,
    those that waited would be refused. (Promise 8)"""
    referrer = await rich(shop)
    paid = await asyncio.gather(*(shop.redeem("payout", referrer, 500) for _ in range(32)))
    assert sorted(is_new for _, is_new in paid) == [False] * 31 + [True]
    assert len({transfer.transfer_id for transfer, _ in paid}) == 1
    assert await shop.balance(referrer) == (0, 0, 500)


async def test_a_repetition_that_waits_for_its_first_is_not_refused(
    shop: Shop, database: asyncpg.Connection, settings: Settings
) -> None:
    """The first waits at the balance with its id in the table; with the money before the id the
    second would find too little."""
    referrer = await rich(shop)
    barrier = await asyncpg.connect(settings.database_url)
    try:
        async with barrier.transaction():
            await barrier.execute("SELECT FROM balances FOR UPDATE")
            first = await until_blocked(database, shop.redeem("payout", referrer, 500))
            second = asyncio.ensure_future(shop.redeem("payout", referrer, 500))
            await asyncio.sleep(0.1)
        assert [is_new for _, is_new in await asyncio.gather(first, second)] == [True, False]
    finally:
        await barrier.close()


async def test_of_40_payouts_of_100_from_500_five_succeed(shop: Shop) -> None:
    """Without `available >= amount` in REDEEM all would, and leave a debt. (Promise 8)"""
    referrer = await rich(shop)
    paid = await asyncio.gather(
        *(shop.redeem(new_id("payout"), referrer, 100) for _ in range(40)), return_exceptions=True
    )
    assert sum(isinstance(one, tuple) for one in paid) == 5
    refused = [one for one in paid if isinstance(one, BalanceTooLow)]
    assert len(refused) == 35
    assert {one.available for one in refused} <= {0, 100, 200, 300, 400}
    assert await shop.balance(referrer) == (0, 0, 500)


async def test_what_comes_while_a_payout_is_refused_is_paid_out(
    shop: Shop, database: asyncpg.Connection, settings: Settings
) -> None:
    """Without TryAgain in `redeem` it would be refused, as if 500 were more than 500."""
    referrer = await rich(shop, 100)
    barrier = await asyncpg.connect(settings.database_url)
    try:
        under_way = barrier.transaction()
        await under_way.start()
        await barrier.execute(
            """
            INSERT INTO transfers
                   (transfer_id, programme_id, participant_id, unit, kind, from_account, to_account,
                    amount, external_id, fingerprint, made_by, created_at)
            SELECT $1, programme_id, participant_id, unit, 'redemption', 'available', 'redeemed',
                   1, 'payout', '', 'system', created_at
              FROM transfers
             WHERE participant_id = $2
            """,
            uuid7(),
            referrer.participant.participant_id,
        )
        # It has begun with what is available now, and waits for whoever else uses the id.
        payout = await until_blocked(database, shop.redeem("payout", referrer, 500))
        await shop.adjust(new_id("adjustment"), referrer, 400)
        await under_way.rollback()
        _, is_new = await payout
    finally:
        await barrier.close()
    assert is_new
    assert await shop.balance(referrer) == (0, 0, 500)


async def test_two_cancellations_at_once_pay_back_once(shop: Shop) -> None:
    """Without `transfers_cancelled_once` both would. (Promise 8)"""
    referrer = await rich(shop)
    transfer, _ = await shop.redeem("payout", referrer, 300)
    cancel = shop.services.ledger.cancel
    both = await asyncio.gather(*(cancel(transfer.transfer_id, "system") for _ in range(8)))
    assert sorted(is_new for _, is_new in both) == [False] * 7 + [True]
    assert len({made.transfer_id for made, _ in both}) == 1
    assert await shop.balance(referrer) == (0, 500, 0)


async def test_what_is_no_redemption_cannot_be_cancelled(shop: Shop) -> None:
    referrer = await rich(shop)
    adjustment, _ = await shop.adjust("more", referrer, 1)
    for transfer_id in (adjustment.transfer_id, uuid7()):
        with pytest.raises(TransferNotFound):
            await shop.services.ledger.cancel(transfer_id, "system")


async def test_a_refund_after_the_payout_leaves_a_debt_that_the_next_reward_nets(
    shop: Shop,
) -> None:
    """With a CHECK that `available` is never below 0 the refund would fail. (Promise 9)"""
    referrer = await shop.referrer()
    referee, order, _ = await shop.buy(referrer)
    await shop.redeem("payout", referrer, 500)
    await shop.refund("refund", referee, order)
    assert await shop.balance(referrer) == (0, -500, 500)
    with pytest.raises(BalanceTooLow) as refused:
        await shop.redeem("another", referrer, 1)
    assert refused.value.available == -500
    await shop.buy(referrer)
    assert await shop.balance(referrer) == (0, 0, 500)


async def test_an_id_belongs_to_its_content_for_ever(shop: Shop) -> None:
    referrer = await rich(shop)
    await shop.redeem("payout", referrer, 100)
    with pytest.raises(IdReused):
        await shop.redeem("payout", referrer, 101)
    with pytest.raises(IdReused):
        await shop.adjust("payout", referrer, 100)
    assert await shop.balance(referrer) == (0, 400, 100)


async def test_payouts_and_refunds_at_once_lose_nothing(shop: Shop) -> None:
    """With a balance that is read and then written, some of either would be lost."""
    referrer = await shop.referrer()
    bought = [await shop.buy(referrer) for _ in range(10)]
    refunds = [shop.refund(new_id("refund"), referee, order) for referee, order, _ in bought[:5]]
    payouts = [shop.redeem(new_id("payout"), referrer, 500) for _ in range(5)]
    await asyncio.gather(*refunds, *payouts, return_exceptions=True)
    _, available, redeemed = await shop.balance(referrer)
    assert available + redeemed == 5 * 500


async def test_the_ledger_check_sees_each_kind_of_difference(
    shop: Shop, database: asyncpg.Connection
) -> None:
    await shop.use_rules(
        {**FRIEND, "max_per_referrer": 9, "max_total": 9},
        {"name": "two", "to": "referrer", "on": "milestone", "at": 2, "amount": 7, "unit": "EUR"},
    )
    referrer = await shop.referrer()
    for _ in range(2):
        await shop.buy(referrer)
    for damage, repair in (
        ("UPDATE balances SET pending = pending + 1", "UPDATE balances SET pending = pending - 1"),
        ("UPDATE rewards SET reversed = 1", "UPDATE rewards SET reversed = 0"),
        ("UPDATE rewards SET state = 'pending'", "UPDATE rewards SET state = 'available'"),
        ("UPDATE standings SET qualified = 3", "UPDATE standings SET qualified = 2"),
        ("UPDATE rewards SET nth = 3 WHERE nth = 2", "UPDATE rewards SET nth = 2 WHERE nth = 3"),
        ("UPDATE reward_counts SET given = 3", "UPDATE reward_counts SET given = 2"),
    ):
        await database.execute(damage)
        assert [one async for one in shop.services.ledger_check.check_all()], damage
        await database.execute(repair)
