"""Whoever is erased is erased everywhere: no text of the database names them."""

from datetime import timedelta

import asyncpg

from tests.api.webhooks.conftest import listen, until_ended
from tests.company import Company
from tests.factories import PASSWORD
from tests.stand_ins.webhooks import Got, Receiver
from tests.waiting import until

TABLES = """
    SELECT table_name
      FROM information_schema.tables
     WHERE table_schema = current_schema
       AND table_name NOT LIKE '%yoyo%'
"""
NAME = "zebedee"
PURCHASE = {"amount": 4900, "unit": "EUR"}
RULES = {
    "qualify": {"on": "purchase"},
    "rewards": [
        {"name": "friend", "to": "referrer", "on": "qualified", "unit": "EUR", "amount": 500},
        {"name": "welcome", "to": "referee", "on": "qualified", "unit": "EUR", "amount": 300},
    ],
}


async def where_named(database: asyncpg.Connection) -> list[str]:
    """Return the rows of all tables in which the name is found, as a dump would have it."""
    found = []
    for (table,) in await database.fetch(TABLES):
        for (row,) in await database.fetch(f"SELECT t::text FROM {table} AS t"):
            if NAME in row.lower() or NAME.encode().hex() in row.lower():
                found.append(f"{table}: {row}")
    return found


async def test_of_an_erased_participant_no_name_is_left(
    company: Company, receiver: Receiver, database: asyncpg.Connection
) -> None:
    """Codes keep their names, which nobody else is ever given.

    Without deleting the answers that are kept, or with the company's id in messages, it is found.
    """
    endpoint_id = await listen(company, receiver)
    await company.use_rules(RULES)
    body = {
        "external_id": NAME,
        "email": f"{NAME}@example.com",
        "device_id": f"phone-of-{NAME}",
        "code": {"expires_in_days": 30},
    }
    created = (await company.post("/participants", body, key=f"create-{NAME[::-1]}")).json()
    participant = f"/participants/{created['participant_id']}"
    await company.patch(participant, {"public_name": NAME.title()})
    friend = {"external_id": "friend", "code": created["code"]}
    await company.post("/referrals", friend, key="sign-up")
    await company.post(
        "/events", {"id": "e-1", "type": "purchase", "external_id": "friend", **PURCHASE}, key="1"
    )
    await company.sign_up((await company.new_referrer("bert"))["code"], NAME)
    await company.report("purchase", NAME, **PURCHASE)
    payout = {"id": "p-1", "external_id": NAME, "unit": "EUR", "amount": 500}
    await company.post("/redemptions", payout, key="2")
    await until_ended(company, endpoint_id)
    assert any(NAME in got.body.decode() for got in receiver.got)
    assert await where_named(database)

    assert (await company.delete(participant)).status == 204
    await company.report("refund", "friend", refunds="e-1")
    await until_ended(company, endpoint_id)
    assert await where_named(database) == []


async def test_what_an_erased_participant_had_waiting_arrives_without_the_name(
    company: Company, receiver: Receiver
) -> None:
    endpoint_id = await listen(company, receiver)
    receiver.status = 500
    created = (await company.post("/participants", {"external_id": NAME})).json()
    [first] = await until(lambda: receiver.got)
    assert (await company.delete(f"/participants/{created['participant_id']}")).status == 204
    receiver.status = 204
    company.api.clock.ahead = timedelta(seconds=6.5)
    await until_ended(company, endpoint_id)
    again = receiver.got[-1]
    assert again.message_id == first.message_id
    assert [_participant_in(each)["external_id"] for each in (first, again)] == [NAME, None]
    assert _participant_in(again)["id"] == created["participant_id"]
    assert receiver.refused == 0


async def test_of_an_erased_account_no_name_is_left(
    company: Company, receiver: Receiver, database: asyncpg.Connection
) -> None:
    api = company.api
    endpoint_id = await listen(company, receiver)
    await company.use_rules(RULES)
    anna = await api.new_person()
    zebedee = await api.new_person(f"{NAME}@example.com", referral_code=await api.new_code(anna))
    code = await api.new_code(zebedee)
    await api.new_person(referral_code=code)
    name = {"public_name": NAME.title()}
    await company.patch(f"/participants/{zebedee.user_id}", name)
    bought = {"id": "e-1", "type": "purchase", "participant_id": zebedee.user_id, **PURCHASE}
    assert (await company.post("/events", bought, key="1")).json()["outcome"] == "qualified"
    await until_ended(company, endpoint_id)
    assert await where_named(database)

    erased = await api.delete("/users/me", {"password": PASSWORD}, by=zebedee)
    assert erased.status == 204
    await until_ended(company, endpoint_id)

    async def is_forgotten_by_the_cache() -> bool:
        return not await database.fetchval("SELECT count(*) FROM jobs")

    await until(is_forgotten_by_the_cache)
    assert await where_named(database) == []
    assert not any(NAME in got.body.decode() for got in receiver.got)


def _participant_in(got: Got) -> dict[str, str | None]:
    participant: dict[str, str | None] = got.document["data"]["participant"]
    return participant
