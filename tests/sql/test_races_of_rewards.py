"""What rewards do beside one another: caps, milestones, holds, reviews, refunds.

Each race says what to remove in order to see it lost. After each the ledger proves itself.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from service.settings.settings import Settings
from tests.sql.racing import until_blocked
from tests.sql.rewarding import CONNECTIONS, FRIEND, Shop, new_id, open_shop

DAY = timedelta(days=1)
SHARE = {"name": "share", "to": "referrer", "on": "purchase", "unit": "EUR", "basis_points": 1000}
WELCOME = {"name": "welcome", "to": "referee", "on": "qualified", "unit": "points", "amount": 100}
FIVES = {"name": "fives", "to": "referrer", "on": "milestone", "every": 5, "unit": "EUR"}
HELD = {**FRIEND, "hold_days": 14}


@pytest.fixture
async def shop(settings: Settings, database: asyncpg.Connection) -> AsyncIterator[Shop]:
    async with open_shop(settings, database) as shop:
        yield shop
        found = [difference async for difference in shop.services.ledger_check.check_all()]
        assert found == []


async def test_64_identical_events_at_once_are_rewarded_once(shop: Shop) -> None:
    """Without `events_happen_once` there would be 64 events; without the participant's lock and
    `rewards_given_once` as many rewards. (Promise 1)"""
    await shop.use_rules(FRIEND, WELCOME)
    referrer, referee = await shop.referrer(), new_id("referee")
    await shop.sign_up(referrer, referee)
    reported = await asyncio.gather(*(shop.report("order", referee) for _ in range(64)))
    assert sorted(one.is_new for one in reported) == [False] * 63 + [True]
    assert {one.outcome for one in reported} == {"qualified"}
    assert [len(await shop.live(rule)) for rule in ("friend", "welcome")] == [1, 1]
    assert await shop.balance(referrer) == (0, 500, 0)


async def test_an_event_and_its_sign_up_at_once_give_both_rewards_whichever_is_first(
    shop: Shop,
) -> None:
    """Without FOR NO KEY UPDATE in LOCK_EXTERNAL of participants neither might see the other.
    (Promise 2)"""
    await shop.use_rules(FRIEND, WELCOME)
    referrer = await shop.referrer()
    for _ in range(20):
        referee = new_id("referee")
        both = [shop.sign_up(referrer, referee), shop.report(new_id("order"), referee)]
        random.shuffle(both)
        await asyncio.gather(*both)
    assert [len(await shop.live(rule)) for rule in ("friend", "welcome")] == [20, 20]
    assert await shop.balance(referrer) == (0, 20 * 500, 0)


@pytest.mark.parametrize("rule", [{**SHARE, "hold_days": 1}, FRIEND], ids=["held", "at once"])
async def test_purchase_refund_sign_up_and_sweep_in_any_overlap_leave_nothing(
    shop: Shop, rule: dict[str, Any]
) -> None:
    """Without the participant's lock a refund might be told of a purchase that is not there yet.
    (Promise 3)"""
    await shop.use_rules(rule)
    referrer = await shop.referrer()
    bought = shop.clock() - 2 * DAY
    for _ in range(25):
        referee, order, refund = new_id("referee"), new_id("order"), new_id("refund")
        work = [
            shop.sign_up(referrer, referee, signed_up_at=bought),
            shop.report(order, referee, occurred_at=bought + timedelta(minutes=1)),
            shop.refund(refund, referee, order),
            shop.services.sweeps.release_due(),
            shop.services.sweeps.release_due(),
        ]
        random.shuffle(work)
        await asyncio.gather(*work)
    await shop.sweep()
    assert await shop.balance(referrer) == (0, 0, 0)
    assert (
        await shop.database.fetchval("SELECT count(*) FROM rewards WHERE state <> 'reversed'") == 0
    )


@pytest.mark.parametrize("cap", ["max_per_referrer", "max_total"])
async def test_of_100_conversions_at_once_ten_are_rewarded_and_refunds_make_room(
    shop: Shop, cap: str
) -> None:
    """Without the WHERE in TAKE of reward_counts, or with a SELECT before it, more would be.
    (Promise 4)"""
    await shop.use_rules({**FRIEND, cap: 10})
    referrer = await shop.referrer()

    async def all_buy(count: int) -> list[Any]:
        free = asyncio.Semaphore(CONNECTIONS)  # a longer queue would be refused

        async def buy() -> Any:
            async with free:
                return await shop.buy(referrer)

        return await asyncio.gather(*(buy() for _ in range(count)))

    bought = await all_buy(100)
    outcomes = [reported.outcome for _, _, reported in bought]
    assert (outcomes.count("qualified"), outcomes.count("cap-reached")) == (10, 90)
    assert len(await shop.live("friend")) == 10
    given = [one for one in bought if one[2].outcome == "qualified"]
    refused = [one for one in bought if one[2].outcome == "cap-reached"]
    for referee, order, _ in given[:3]:
        await shop.refund(new_id("refund"), referee, order)
    assert len(await shop.live("friend")) == 7
    for referee, order, _ in refused[:5]:  # what was refused stays so
        await shop.report(new_id("order"), referee)
        await shop.refund(new_id("refund"), referee, order)
    assert len(await shop.live("friend")) == 7
    outcomes = [reported.outcome for _, _, reported in await all_buy(5)]
    assert (outcomes.count("qualified"), outcomes.count("cap-reached")) == (3, 2)
    assert await shop.balance(referrer) == (0, 10 * 500, 0)


async def test_referrals_that_qualify_at_once_are_counted_without_gap_or_twin(shop: Shop) -> None:
    """With the standing read before it is written, two would be the same n-th, and the milestone
    would be given twice or never. (Promise 5)"""
    await shop.use_rules(
        {**FRIEND, "tiers": [{"from": 6, "amount": 800}]}, {**FIVES, "amount": 1000}
    )
    referrer = await shop.referrer()
    bought = await asyncio.gather(*(shop.buy(referrer) for _ in range(11)))
    nths = await shop.database.fetch("SELECT nth FROM referrals ORDER BY nth")
    assert [row["nth"] for row in nths] == list(range(1, 12))
    assert [row["nth"] for row in await shop.live("fives")] == [5, 10]
    everything = 5 * 500 + 6 * 800 + 2 * 1000
    assert await shop.balance(referrer) == (0, everything, 0)

    (first, one, _), (second, two, _) = bought[:2]
    await asyncio.gather(
        shop.refund(new_id("refund"), first, one), shop.refund(new_id("refund"), second, two)
    )
    assert [row["nth"] for row in await shop.live("fives")] == [5]
    await asyncio.gather(shop.report(new_id("order"), first), shop.report(new_id("order"), second))
    assert [row["nth"] for row in await shop.live("fives")] == [5, 10]
    assert await shop.balance(referrer) == (0, everything, 0)


async def due(shop: Shop) -> tuple[Any, str, str, Any]:
    """Return a referrer, a referee, a purchase, and the reward for it that is due."""
    await shop.use_rules(HELD)
    referrer = await shop.referrer()
    referee, order, _ = await shop.buy(referrer)
    assert await shop.balance(referrer) == (500, 0, 0)
    shop.clock.ahead = 15 * DAY
    return referrer, referee, order, (await shop.live("friend"))[0]


@pytest.mark.parametrize("refund_is_first", [True, False])
async def test_a_refund_and_a_release_at_once_take_back_once(
    shop: Shop, database: asyncpg.Connection, settings: Settings, refund_is_first: bool
) -> None:
    """The first is stopped with the lock of the referral in its hand, at the balance that it has to
    move; then the second comes. Without the referral's lock in the sweep, both would move the
    reward. (Promise 7)"""
    referrer, referee, order, _ = await due(shop)
    refund = shop.refund(new_id("refund"), referee, order)
    release = shop.services.sweeps.release_due()
    first, second = (refund, release) if refund_is_first else (release, refund)
    barrier = await asyncpg.connect(settings.database_url)
    try:
        async with barrier.transaction():
            await barrier.execute("SELECT FROM balances FOR UPDATE")
            moving = await until_blocked(database, first)
            other = asyncio.ensure_future(second)
            await asyncio.sleep(0.2)
            assert other.done() is refund_is_first  # the sweep skips what is locked
        await asyncio.gather(moving, other)
    finally:
        await barrier.close()
    await shop.sweep()
    assert await shop.balance(referrer) == (0, 0, 0)
    kinds = await database.fetch("SELECT kind, from_account FROM transfers ORDER BY transfer_id")
    found = [tuple(row) for row in kinds]
    if refund_is_first:
        assert found == [("grant", "programme"), ("reversal", "pending")]
    else:
        assert found == [("grant", "programme"), ("release", "pending"), ("reversal", "available")]


async def test_two_sweeps_at_once_release_once(shop: Shop) -> None:
    """Without the state in the WHERE of RELEASE and the referral's lock, both would."""
    referrer, *_ = await due(shop)
    await asyncio.gather(*(shop.services.sweeps.release_due() for _ in range(8)))
    assert await shop.balance(referrer) == (0, 500, 0)


async def test_a_review_and_a_release_at_once_take_back_what_was_given(shop: Shop) -> None:
    """Without the referral's lock in `review`, a rejected referral might keep what was released at
    that moment. (Promise 6)"""
    for _ in range(10):
        referrer, _, _, reward = await due(shop)
        work = [
            shop.review(reward["referral_id"], "reject"),
            shop.services.sweeps.release_due(),
            shop.review(reward["referral_id"], "reject"),
        ]
        random.shuffle(work)
        await asyncio.gather(*work)
        assert await shop.balance(referrer) == (0, 0, 0)
        shop.clock.ahead = timedelta()
    rows = await shop.database.fetch(
        "SELECT referral_id, array_agg(sequence ORDER BY sequence) AS sequences"
        " FROM decisions GROUP BY referral_id"
    )
    assert all(row["sequences"] == list(range(1, len(row["sequences"]) + 1)) for row in rows)


async def test_a_block_waits_for_what_is_being_given_and_holds_it(
    shop: Shop, database: asyncpg.Connection, settings: Settings
) -> None:
    """Without the lock of the standing the block would miss the reward that is being given."""
    await shop.use_rules(HELD)
    referrer, referee = await shop.referrer(), new_id("referee")
    await shop.sign_up(referrer, referee)
    barrier = await asyncpg.connect(settings.database_url)
    try:
        async with barrier.transaction():
            await barrier.execute("LOCK TABLE transfers IN EXCLUSIVE MODE")
            giving = await until_blocked(database, shop.report(new_id("order"), referee))
            blocking = asyncio.ensure_future(shop.block(referrer, True))
            await asyncio.sleep(0.2)
            assert not blocking.done()
        await asyncio.gather(giving, blocking)
    finally:
        await barrier.close()
    [reward] = await shop.live("friend")
    assert reward["held"]
    shop.clock.ahead = 15 * DAY
    await shop.sweep()
    assert await shop.balance(referrer) == (500, 0, 0)
    await shop.block(referrer, False)
    await shop.sweep()
    assert await shop.balance(referrer) == (0, 500, 0)
