"""The judge of the ledger finds what is wrong in PostgreSQL, and nothing else."""

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from tests.company import Company, new_company
from tests.factories import Api
from tests.faults.ledger_judge import wrong_at_last, wrong_now
from tests.faults.shop import CAPS, EVERY, HOLD, PROGRAMME, RULES, UNIT, referrer

EXACT = timedelta()
COPY = """
    INSERT INTO rewards (reward_id, programme_id, version, rule, participant_id, referral_id,
                         cause_id, unit, amount, state, available_at, created_at)
    SELECT gen_random_uuid(), programme_id, version, rule, participant_id, referral_id, {cause},
           unit, amount, state, available_at, created_at
      FROM rewards
     WHERE rule = '{rule}'
       AND state <> 'reversed'
"""
WRONG = [
    ("sum of its transfers", "UPDATE balances SET pending = pending + 1"),
    ("sum of its transfers", "DELETE FROM transfers WHERE kind = 'redemption'"),
    ("wrong sums", "UPDATE balances SET redeemed = redeemed + 1"),
    ("paid out more than there was", "UPDATE balances SET available = -1"),
    ("not what its transfers say", "UPDATE rewards SET amount = amount + 1 WHERE rule = 'friend'"),
    ("not what its transfers say", "UPDATE rewards SET reversed = 1 WHERE rule = 'share'"),
    ("not what its transfers say", "DELETE FROM transfers WHERE kind = 'grant'"),
    ("given twice", "DROP INDEX rewards_given_once;" + COPY.format(cause="cause_id", rule="share")),
    ("cap of a referrer", COPY.format(cause="gen_random_uuid()", rule="friend")),
    ("cap of all", COPY.format(cause="gen_random_uuid()", rule="thanks")),
    ("refused before the cap", "UPDATE rewards SET rule = 'other' WHERE rule = 'friend'"),
    ("not what was reached", "UPDATE standings SET qualified = 4"),
    ("held for nothing", "UPDATE rewards SET state = 'pending', held = true WHERE rule = 'fives'"),
    ("a wrong standing", "UPDATE standings SET qualified = qualified + 1"),
    ("a gap or a twin", "UPDATE referrals SET nth = 1 WHERE nth = 2"),
    ("a gap or a twin", "UPDATE referrals SET nth = 99 WHERE nth = 2"),
    ("decisions with gaps", "DELETE FROM decisions WHERE sequence = 2"),
    ("decisions with gaps", "UPDATE decisions SET state = 'pending'"),
    ("before its time", "UPDATE rewards SET available_at = now() + interval '1 h'"),
    ("is not {'rewarded'}", "UPDATE referrals SET state = 'qualified'"),
    ("rewards are not", "UPDATE rewards SET amount = amount - 1 WHERE rule = 'share'"),
    ("rewards are not", "DELETE FROM decisions WHERE reason = 'cap-reached'"),
    ("rewards are not", "UPDATE rewards SET participant_id = referral_id WHERE rule = 'friend'"),
    ("in spite of its review", "UPDATE referrals SET review = 'open'"),
    ("waits for nothing", "UPDATE rewards SET state = 'pending' WHERE rule = 'thanks'"),
    ("waits until", "UPDATE rewards SET available_at = now() WHERE state = 'pending'"),
    (
        "friend is available before",
        "UPDATE rewards SET state = 'available', available_at = created_at WHERE rule = 'friend'",
    ),
]


@pytest.fixture
async def company(api: Api) -> Company:
    """A shop in which caps and a milestone are reached, and something is refunded and paid out."""
    company = await new_company(api)
    made = await company.post("/programmes", {"key": PROGRAMME, "name": "Shop", "rules": RULES})
    assert made.status == 201, made.body
    code = (await company.post("/participants", referrer(0, 0))).json()["code"]
    long_ago = (datetime.now(UTC) - 2 * HOLD).isoformat()
    for number in range(EVERY + 1):
        name = f"buyer-{number}"
        await company.sign_up(code, name, programme=PROGRAMME, signed_up_at=long_ago)
        moment = {"occurred_at": long_ago} if number == 0 else {}
        await buy(company, name, f"order-{number}", **moment)
    who = {"external_id": "buyer-0", "programme": PROGRAMME, "unit": UNIT}
    paid = await company.post("/redemptions", {"id": "payout-1", "amount": 40, **who})
    assert paid.status == 201, paid.body
    return company


async def buy(company: Company, name: str, order: str, **moment: str) -> None:
    answer = await company.report(
        "purchase", name, id=order, amount=4900, unit=UNIT, programme=PROGRAMME, **moment
    )
    assert answer.status == 201, answer.body


@pytest.mark.usefixtures("company")
async def test_a_shop_whose_ledger_is_right_is_right(database: asyncpg.Connection) -> None:
    live = "SELECT rule, count(*) FROM rewards WHERE state <> 'reversed' GROUP BY rule"
    given = {row["rule"]: row["count"] for row in await database.fetch(live)}
    assert given["friend"] == CAPS["friend"]
    assert given["thanks"] == CAPS["thanks"]
    assert given["fives"] == 1
    assert await wrong_now(database, EXACT) == []
    assert await wrong_at_last(database, EXACT) == []


async def test_a_refund_leaves_it_right(company: Company, database: asyncpg.Connection) -> None:
    part = {"refunds": "order-1", "amount": 3000, "unit": UNIT, "programme": PROGRAMME}
    assert (await company.report("refund", "buyer-1", **part)).json()["outcome"] == "reversed"
    assert await wrong_at_last(database, EXACT) == []


@pytest.mark.usefixtures("company")
@pytest.mark.parametrize(("complaint", "sql"), WRONG)
async def test_what_is_wrong_is_found(
    database: asyncpg.Connection, complaint: str, sql: str
) -> None:
    transaction = database.transaction()
    await transaction.start()
    await database.execute(sql)
    found = await wrong_at_last(database, EXACT)
    await transaction.rollback()
    assert [violation for violation in found if complaint in violation]
