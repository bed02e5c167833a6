"""The judge of webhooks sees what is wrong, and nothing else."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any, Final

import asyncpg
import pytest
from multidict import CIMultiDict
from standardwebhooks import Webhook

from service.settings.settings import Settings
from tests.company import new_company
from tests.factories import Api
from tests.faults.webhook_judge import wrong_attempts, wrong_now, wrong_receipts
from tests.stand_ins.webhooks import Got, Receiver

REWARDED: Final = {
    "qualify": {"on": "purchase"},
    "rewards": [
        {"name": "part", "to": "referrer", "on": "purchase", "unit": "EUR", "basis_points": 1000},
        {"name": "held", "to": "referrer", "on": "qualified", "unit": "EUR", "amount": 500}
        | {"hold_days": 14},
        {"name": "due", "to": "referee", "on": "qualified", "unit": "EUR", "amount": 300}
        | {"hold_days": 1},
    ],
}
SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY: Final = b'{"id":"participant 7"}'
SENT: Final = b'{"id":"anna"}'
IDS: Final = {"7": "anna"}
NO_HEADERS: Final[Mapping[str, str]] = {}
NOON: Final = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, webhook_networks=(ip_network("127.0.0.0/8"),))


async def act_out_a_story(api: Api) -> None:
    """Have one of each announced: rewards of parts, held, released, taken back, paid out."""
    company = await new_company(api)
    async with Receiver().serving() as receiver:
        made = await company.post("/webhook-endpoints", {"url": receiver.url})
        assert made.status == 201, made.body
    await company.use_rules(REWARDED)
    code = (await company.new_referrer("anna"))["code"]
    days_ago = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    # Both share an IP address, which is flagged.
    bert = {"ip": "192.0.2.7", "signed_up_at": days_ago}
    await company.post("/participants", {"external_id": "anna", "ip": "192.0.2.7"})
    assert (await company.sign_up(code, "bert", **bert)).json()["flags"] == ["same-ip"]
    paid = {"id": "order", "amount": 4900, "unit": "EUR"}
    bought = await company.report("purchase", "bert", occurred_at=days_ago, **paid)
    assert bought.json()["outcome"] == "qualified", bought.body
    for amount in (1000, 500):
        await company.report("refund", "bert", refunds="order", amount=amount, unit="EUR")
    order = {"id": "payout", "external_id": "anna", "unit": "EUR", "amount": 100}
    redeemed = (await company.post("/redemptions", order)).json()
    cancelled = await company.post(f"/redemptions/{redeemed['id']}/cancel")
    assert cancelled.status == 201, cancelled.body
    await company.report("refund", "bert", refunds="order")


async def test_what_the_service_announces_is_right(api: Api, database: asyncpg.Connection) -> None:
    await act_out_a_story(api)
    types = {row["type"] for row in await database.fetch("SELECT type FROM webhook_messages")}
    assert types >= {
        "participant.created",
        "referral.created",
        "referral.flagged",
        "referral.qualified",
        "referral.rewarded",
        "referral.reversed",
        "reward.created",
        "reward.reversed",
        "redemption.created",
        "redemption.cancelled",
    }
    assert await wrong_now(database) == []


ONE: Final = "(SELECT message_id FROM webhook_messages WHERE type = '{kind}' LIMIT 1)"
TWICE: Final = f"""
    INSERT INTO webhook_messages
    SELECT gen_random_uuid(), type, body, created_at FROM webhook_messages WHERE message_id = {ONE}
"""
ANOTHER_SUM: Final = """
    UPDATE webhook_messages
       SET body = convert_to(replace(convert_from(body, 'UTF8'), ':490,"state"', ':489,"state"'),
                             'UTF8')
     WHERE type = 'reward.reversed'
"""


ANOTHER_STATE: Final = """
    UPDATE webhook_messages
       SET body = convert_to(replace(convert_from(body, 'UTF8'), '"pending"', '"rewarded"'), 'UTF8')
     WHERE type = 'referral.flagged'
"""


@pytest.mark.parametrize("kind", ["referral.qualified", "reward.reversed", "redemption.created"])
@pytest.mark.parametrize(
    "harm",
    [
        f"DELETE FROM webhook_messages WHERE message_id = {ONE}",
        f"UPDATE webhook_messages SET type = 'webhook.test' WHERE message_id = {ONE}",
        TWICE,
    ],
)
async def test_a_message_that_is_missing_or_told_twice_is_wrong(
    api: Api, database: asyncpg.Connection, harm: str, kind: str
) -> None:
    await act_out_a_story(api)
    await database.execute(harm.format(kind=kind))
    assert "a wrong webhook" in str(await wrong_now(database))


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM decisions WHERE sequence = (SELECT max(sequence) FROM decisions)",
        "DELETE FROM transfers WHERE kind = 'reversal'",
        ANOTHER_SUM,
    ],
)
async def test_a_message_without_its_cause_is_wrong(
    api: Api, database: asyncpg.Connection, harm: str
) -> None:
    await act_out_a_story(api)
    await database.execute(harm)
    assert "a wrong webhook" in str(await wrong_now(database))


async def test_two_messages_of_one_sequence_that_differ_are_wrong(
    api: Api, database: asyncpg.Connection
) -> None:
    await act_out_a_story(api)
    await database.execute(ANOTHER_STATE)
    assert "two of an age" in str(await wrong_now(database))


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM jobs WHERE kind = 'delivery'",
        "DELETE FROM webhook_deliveries",
        "UPDATE webhook_deliveries SET state = 'delivered'",
        "UPDATE jobs SET due_at = NULL WHERE kind = 'delivery'",
        "UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = 'failing'",
    ],
)
async def test_a_delivery_that_is_not_planned_is_wrong(
    api: Api, database: asyncpg.Connection, harm: str
) -> None:
    await act_out_a_story(api)
    await database.execute(harm)
    assert await wrong_now(database) != []


def got(body: bytes = SENT, after: float = 0, headers: Mapping[str, str] = NO_HEADERS) -> Got:
    """Return what a receiver got so many seconds after noon."""
    signed_at = NOON + timedelta(seconds=int(after))
    signed = {
        "webhook-id": "1",
        "webhook-timestamp": str(int(signed_at.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("1", signed_at, body.decode()),
    }
    return Got(CIMultiDict({**signed, **headers}), body, "/hook", None, at=after)


def stored(state: str = "delivered") -> dict[str, Any]:
    return {"1": {"message_id": "1", "state": state, "body": BODY}}


def test_what_is_received_as_it_is_stored_is_right() -> None:
    assert [*wrong_receipts(stored(), IDS, [got(), got(after=9)], {"1"})] == []
    assert [*wrong_receipts(stored("pending"), IDS, [got()], ())] == []
    assert [*wrong_receipts(stored("pending"), IDS, [], ())] == []


@pytest.mark.parametrize(
    ("rows", "received", "accepted"),
    [
        ({}, [got()], {"1"}),
        (stored(), [got(body=BODY)], {"1"}),
        (stored(), [got()], set()),
        (stored("failed"), [got()], set()),
    ],
)
def test_what_is_lost_or_was_never_written_is_wrong(
    rows: Any, received: list[Got], accepted: set[str]
) -> None:
    assert [*wrong_receipts(rows, IDS, received, accepted)] != []


def test_each_attempt_is_signed_anew() -> None:
    assert [*wrong_attempts([got(), got(after=0.5), got(after=9)], SECRET)] == []
    assert [*wrong_attempts([got(), replace(got(), at=9)], SECRET)] != []


@pytest.mark.parametrize(
    "header", [{"webhook-signature": "v1,AAAA"}, {"webhook-timestamp": "1"}, {"webhook-id": "2"}]
)
def test_a_signature_of_something_else_is_wrong(header: dict[str, str]) -> None:
    assert [*wrong_attempts([got(headers=header)], SECRET)] != []
