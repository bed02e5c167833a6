"""Webhooks arrive: signed, at least once, under one id, and logged."""

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest

from tests.api.assertions import assert_problem
from tests.api.webhooks.conftest import deliveries_of, listen, send_test, until_ended
from tests.company import Company
from tests.stand_ins.webhooks import Receiver
from tests.waiting import until

QUALIFY_ON_PURCHASE = {"qualify": {"on": "purchase"}, "rewards": []}


async def test_a_webhook_is_verified_by_the_reference_library(
    company: Company, receiver: Receiver
) -> None:
    endpoint_id = await listen(company, receiver)
    message_id = await send_test(company, endpoint_id)
    [got] = await until(lambda: receiver.got)
    assert got.message_id == message_id
    assert got.verified_by(receiver.secret or "")
    assert not got.verified_by("whsec_" + "A" * 43 + "=")
    assert receiver.refused == 0
    assert got.headers["User-Agent"] == "referrals/1"
    assert got.headers["Content-Type"] == "application/json"
    assert "Cookie" not in got.headers
    assert got.document["type"] == "webhook.test"
    assert got.document["data"] == {"endpoint": {"id": endpoint_id}}
    [shown] = await until_ended(company, endpoint_id)
    assert (shown["message_id"], shown["type"], shown["state"]) == (
        message_id,
        "webhook.test",
        "delivered",
    )
    [attempt] = shown["attempts"]
    assert (attempt["status"], attempt["error"]) == (204, None)


async def test_a_retry_has_the_same_id_and_bytes_and_another_signature(
    company: Company, receiver: Receiver
) -> None:
    endpoint_id = await listen(company, receiver)
    receiver.script = [500]
    await send_test(company, endpoint_id)
    await until(lambda: receiver.got)
    company.api.clock.ahead = timedelta(seconds=6.5)  # 5 s, and up to 20 % more
    first, second = await until(lambda: len(receiver.got) == 2 and receiver.got)
    assert first.message_id == second.message_id
    assert first.body == second.body
    assert int(second.headers["webhook-timestamp"]) >= int(first.headers["webhook-timestamp"]) + 5
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    assert receiver.refused == 0
    [shown] = await until_ended(company, endpoint_id)
    assert shown["state"] == "delivered"
    assert [attempt["status"] for attempt in shown["attempts"]] == [500, 204]


async def test_the_story_of_a_referral_is_announced(company: Company, receiver: Receiver) -> None:
    await company.use_rules(QUALIFY_ON_PURCHASE)
    await listen(company, receiver)
    referrer = await company.new_referrer("u-1")
    told = {"email": "bert@example.com", "ip": "192.0.2.1", "device_id": "bert-phone"}
    await company.sign_up(referrer["code"], "u-2", **told)
    await company.report("purchase", "u-2", id="order-1")
    await company.report("refund", "u-2", id="refund-1", refunds="order-1")
    await company.patch("/programmes/default", {"paused": True})
    await until(lambda: len(receiver.got) == 6)
    assert sorted(receiver.types) == sorted(
        [
            "participant.created",
            "participant.created",
            "referral.created",
            "referral.qualified",
            "referral.reversed",
            "programme.changed",
        ]
    )
    assert receiver.refused == 0
    by_type = {got.document["type"]: got for got in receiver.got}
    qualified = by_type["referral.qualified"].document
    participant = (await company.get("/participants?external_id=u-2")).json()["items"][0]
    assert qualified["data"] == {
        "programme": "default",
        "referral": {
            "id": participant["participant_id"],
            "external_id": "u-2",
            "referrer_id": referrer["participant_id"],
            "referrer_external_id": "u-1",
            "state": "qualified",
            "reason": "qualified",
            "review": "none",
            "flags": [],
            "sequence": 2,
            "version": 2,
        },
        "event_id": "order-1",
    }
    assert qualified["timestamp"].endswith("Z")
    assert by_type["referral.reversed"].document["data"]["event_id"] == "refund-1"
    assert by_type["referral.reversed"].document["data"]["referral"]["sequence"] == 3
    assert by_type["programme.changed"].document["data"]["paused"] is True
    for got in receiver.got:
        assert len(got.body) < 1024
        assert all(secret.encode() not in got.body for secret in told.values())


async def test_nothing_is_stored_where_nobody_listens(
    company: Company, receiver: Receiver, database: asyncpg.Connection
) -> None:
    await listen(company, receiver, "programme.changed")
    await company.new_referrer()
    assert await database.fetchval("SELECT count(*) FROM webhook_messages") == 0
    assert await database.fetchval("SELECT count(*) FROM jobs WHERE kind = 'delivery'") == 0


async def test_an_answer_is_kept_nowhere(
    company: Company,
    receiver: Receiver,
    database: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither its body nor its headers: it may be that of an internal page."""
    endpoint_id = await listen(company, receiver)
    receiver.answer_body = b"a-secret-of-the-receiver" * 4096
    receiver.headers = {"X-Secret": "a-secret-of-the-receiver"}
    receiver.status = 500
    message_id = await send_test(company, endpoint_id)

    async def logged() -> bool:
        [delivery] = await deliveries_of(company, endpoint_id)
        return bool(delivery["attempts"])

    await until(logged)
    tables = await database.fetch(
        "SELECT tablename FROM pg_tables"
        " WHERE schemaname = 'public' AND tablename NOT LIKE '%yoyo%'"
    )
    for (table,) in tables:
        rows = await database.fetch(f"SELECT t::text FROM {table} t")
        assert not [row for (row,) in rows if "secret-of-the-receiver" in row], table
    metrics = await company.api.get("//metrics")
    shown = await company.get(f"/webhook-endpoints/{endpoint_id}/deliveries")
    assert message_id.encode() in shown.body
    for text in (caplog.text.encode(), metrics.body, shown.body):
        assert b"secret-of-the-receiver" not in text


@pytest.mark.parametrize("status", [300, 302, 307, 404, 500])
async def test_any_other_status_fails_and_a_redirect_is_not_followed(
    company: Company, receiver: Receiver, status: int
) -> None:
    endpoint_id = await listen(company, receiver)
    receiver.status, receiver.headers = status, {"Location": receiver.url}
    await send_test(company, endpoint_id)

    async def attempts() -> Any:
        [delivery] = await deliveries_of(company, endpoint_id)
        assert delivery["state"] == "pending"
        return delivery["attempts"]

    [attempt] = await until(attempts)
    assert (attempt["status"], attempt["error"]) == (status, None)
    assert len(receiver.got) == 1
    assert (await company.get(f"/webhook-endpoints/{endpoint_id}")).json()["failing_since"]


async def test_ten_attempts_are_made_within_four_days(company: Company, receiver: Receiver) -> None:
    endpoint_id = await listen(company, receiver)
    receiver.status = 503
    await send_test(company, endpoint_id)
    for attempt in range(1, 11):
        await until(partial(receiver.has_got, attempt))
        await asyncio.sleep(0.05)
        company.api.clock.ahead += timedelta(hours=24 * 1.2)
    [delivery] = await until_ended(company, endpoint_id)
    assert (delivery["state"], delivery["reason"]) == ("failed", "gave-up")
    assert len(delivery["attempts"]) == 10
    assert len({got.message_id for got in receiver.got}) == 1


async def test_retry_after_is_waited_for(
    company: Company, receiver: Receiver, database: asyncpg.Connection
) -> None:
    endpoint_id = await listen(company, receiver)
    receiver.status, receiver.headers = 429, {"Retry-After": "3600"}
    await send_test(company, endpoint_id)

    async def due() -> Any:
        return await database.fetchval(
            "SELECT due_at - now() FROM jobs WHERE kind = 'delivery' AND last_error IS NOT NULL"
        )

    assert timedelta(minutes=59) < await until(due) <= timedelta(hours=1)


async def test_what_is_sent_again_by_hand_has_its_old_id(
    company: Company, receiver: Receiver
) -> None:
    endpoint_id = await listen(company, receiver)
    message_id = await send_test(company, endpoint_id)
    await until_ended(company, endpoint_id)
    path = f"/webhook-endpoints/{endpoint_id}/deliveries/{message_id}/retry"
    again = await asyncio.gather(*(company.post(path) for _ in range(8)))
    assert {answer.status for answer in again} == {202}
    assert again[0].json() == {"message_id": message_id}
    [delivery] = await until_ended(company, endpoint_id)
    assert {got.message_id for got in receiver.got} == {message_id}
    assert {got.body for got in receiver.got} == {receiver.got[0].body}
    assert len(receiver.got) == len(delivery["attempts"]) >= 2


async def test_a_replay_sends_what_failed_and_nothing_else(
    company: Company, receiver: Receiver
) -> None:
    endpoint_id = await listen(company, receiver)
    delivered = await send_test(company, endpoint_id)
    await until_ended(company, endpoint_id)
    receiver.hanging = True
    failed = [await send_test(company, endpoint_id) for _ in range(5)]
    path = f"/webhook-endpoints/{endpoint_id}"
    await company.patch(path, {"disabled": True})
    receiver.hanging = False
    await until_ended(company, endpoint_id)
    waiting = {
        one["message_id"] for one in await deliveries_of(company, endpoint_id, "?state=failed")
    }
    assert waiting
    await company.patch(path, {"disabled": False})
    receiver.got.clear()
    since = {"since": "2020-01-01T00:00:00Z"}
    replayed = await company.post(f"{path}/replay", since)
    assert (replayed.status, replayed.json()) == (202, {"messages": len(waiting)})
    await until(lambda: {got.message_id for got in receiver.got} == waiting)
    assert (await company.post(f"{path}/replay", since)).json() == {"messages": 0}
    receiver.got.clear()
    all_again = await company.post(f"{path}/replay", {**since, "only_failed": False})
    assert all_again.json() == {"messages": 6}
    await until(lambda: {got.message_id for got in receiver.got} == {delivered, *failed})


async def test_a_disabled_endpoint_is_asked_to_be_sent_nothing(
    company: Company, receiver: Receiver
) -> None:
    endpoint_id = await listen(company, receiver)
    message_id = await send_test(company, endpoint_id)
    await until_ended(company, endpoint_id)
    path = f"/webhook-endpoints/{endpoint_id}"
    await company.patch(path, {"disabled": True})
    since = {"since": "2020-01-01T00:00:00Z", "only_failed": False}
    for asked, body in (
        ("test", None),
        ("replay", since),
        (f"deliveries/{message_id}/retry", None),
    ):
        assert_problem(await company.post(f"{path}/{asked}", body), 409, "conflict")
    assert [one["state"] for one in await deliveries_of(company, endpoint_id)] == ["delivered"]
    await company.patch(path, {"disabled": False})
    assert (await company.post(f"{path}/replay", since)).json() == {"messages": 1}


async def test_a_receiver_that_answers_slowly_with_much_has_succeeded(
    company: Company, receiver: Receiver
) -> None:
    endpoint_id = await listen(company, receiver)
    receiver.status, receiver.answer_body = 200, b"x" * 10_000_000
    await send_test(company, endpoint_id)
    [delivery] = await until_ended(company, endpoint_id)
    assert delivery["state"] == "delivered"
