"""`Idempotency-Key`: a repeated POST gets the first answer, and nothing happens twice."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

from service.api.http.app_keys import SERVICES
from service.domain.idempotency import KEPT_FOR, MOST_KEPT, IdempotencyKey
from service.repositories.idempotency_keys import Answer as IdempotentAnswer
from service.settings.settings import Settings
from tests.api.assertions import assert_problem
from tests.factories import PASSWORD, Answer, Api, Person, new_email, running

KEY = {"Idempotency-Key": "1c7f6a9e-2d5b-4c53-9d7e-0f0d0a6b8b11"}
OTHER_KEY = {"Idempotency-Key": "another"}


async def register(api: Api, email: str, headers: dict[str, str] = KEY, **members: Any) -> Answer:
    body = {"email": email, "password": PASSWORD, **members}
    return await api.post("/auth/register", body, headers=headers)


def assert_repeated(answer: Answer, first: Answer) -> None:
    """The answer is the first one once more, and says so."""
    assert "Idempotency-Replayed" not in first.headers
    assert answer.headers["Idempotency-Replayed"] == "true"
    assert (answer.status, answer.body) == (first.status, first.body)
    assert answer.headers["Content-Type"] == first.headers["Content-Type"]


async def test_a_repeated_registration_gets_the_first_answer(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    code = await api.new_code(anna, max_uses=2)
    first = await register(api, "bert@example.com", referral_code=code)
    assert first.status == 201
    for _ in range(2):
        assert_repeated(await register(api, "bert@example.com", referral_code=code), first)
    assert await database.fetchval("SELECT count(*) FROM referrals") == 1
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 1


async def test_the_order_of_members_and_spaces_make_no_other_request(api: Api) -> None:
    headers = {**KEY, "Content-Type": "application/json"}
    first, again = [
        await api.post("/auth/register", data=body, headers=headers)
        for body in (
            b'{"email": "bert@example.com", "password": "a long walk by the river"}',
            b'{"password":"a long walk by the river","email":"bert@example.com"}',
        )
    ]
    assert first.status == 201
    assert_repeated(again, first)


async def test_another_request_with_the_key_is_refused_and_does_nothing(
    api: Api, database: asyncpg.Connection
) -> None:
    await register(api, "bert@example.com")
    for email, password in [
        ("carl@example.com", PASSWORD),
        ("bert@example.com", "two ships in the harbour"),
    ]:
        answer = await register(api, email, password=password)
        assert_problem(answer, 422, "idempotency-key-reused")
    assert await database.fetchval("SELECT count(*) FROM users") == 1


async def test_a_repetition_costs_no_hash(api: Api, hashes: list[object]) -> None:
    await register(api, "bert@example.com")
    hashes.clear()
    assert (await register(api, "bert@example.com")).status == 201
    assert (await register(api, "carl@example.com")).status == 422
    assert hashes == []


async def test_another_key_or_none_is_another_request(api: Api) -> None:
    await register(api, "bert@example.com")
    for headers in (OTHER_KEY, {}):
        answer = await register(api, "bert@example.com", headers)
        assert_problem(answer, 409, "email-taken", ["#/email"])


async def test_a_refusal_is_an_answer_too(api: Api, anna: Person) -> None:
    """It is given again even when the request would now be granted."""
    await api.new_code(anna)
    first = await api.post("/referral-code", {"expires_in_days": 1}, by=anna, headers=KEY)
    assert_problem(first, 409, "referral-code-exists")
    await api.delete("/referral-code", by=anna)
    again = await api.post("/referral-code", {"expires_in_days": 1}, by=anna, headers=KEY)
    assert_repeated(again, first)


async def test_what_the_schema_refuses_is_refused_again(api: Api) -> None:
    for _ in range(2):
        answer = await register(api, "bert@example.com", nonsense=1)
        assert_problem(answer, 422, "validation-failed", ["#/nonsense"])
    assert (await register(api, "bert@example.com")).status == 201


async def test_the_first_answer_is_given_even_where_the_rules_now_forbid_it(
    api: Api, anna: Person
) -> None:
    """The expiry that was asked for has passed in the meantime."""
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    body = {"expires_at": expires_at.isoformat()}
    first = await api.post("/referral-code", body, by=anna, headers=KEY)
    assert first.status == 201
    api.clock.ahead = timedelta(hours=2)
    later = await api.signed_in(anna.email)
    assert_repeated(await api.post("/referral-code", body, by=later, headers=KEY), first)


async def test_the_first_answer_is_given_even_when_what_it_made_is_gone(
    api: Api, anna: Person
) -> None:
    first = await api.post("/referral-code", {"expires_in_days": 1}, by=anna, headers=KEY)
    await api.delete("/referral-code", by=anna)
    again = await api.post("/referral-code", {"expires_in_days": 1}, by=anna, headers=KEY)
    assert_repeated(again, first)
    assert (await api.get("/referral-code", by=anna)).status == 404


async def test_a_key_is_its_users_own(api: Api, anna: Person) -> None:
    bert = await api.new_person()
    of_anna = await api.post("/referral-code", {"expires_in_days": 1}, by=anna, headers=KEY)
    of_bert = await api.post("/referral-code", {"expires_in_days": 1}, by=bert, headers=KEY)
    assert (of_anna.status, of_bert.status) == (201, 201)
    assert of_anna.json()["code"] != of_bert.json()["code"]


async def test_a_key_opens_nothing_without_credentials(api: Api, anna: Person) -> None:
    await api.post("/referral-code", {"expires_in_days": 1}, by=anna, headers=KEY)
    answer = await api.post("/referral-code", {"expires_in_days": 1}, headers=KEY)
    assert_problem(answer, 401, "not-authenticated")


@pytest.mark.parametrize(
    ("ahead", "status"),
    [(KEPT_FOR - timedelta(minutes=1), 201), (KEPT_FOR + timedelta(seconds=1), 409)],
)
async def test_an_answer_is_kept_for_a_day(api: Api, ahead: timedelta, status: int) -> None:
    await register(api, "bert@example.com")
    api.clock.ahead = ahead
    assert (await register(api, "bert@example.com")).status == status


async def test_an_answer_about_an_account_is_erased_with_it(
    api: Api, database: asyncpg.Connection
) -> None:
    email = new_email()
    first = await register(api, email)
    bert = await api.signed_in(email)
    await api.post("/referral-code", {"expires_in_days": 1}, by=bert, headers=KEY)
    await api.delete("/users/me", {"password": PASSWORD}, by=bert)
    assert await database.fetchval("SELECT count(*) FROM idempotency_keys") == 0
    again = await register(api, email)
    assert again.status == 201
    assert again.json()["id"] != first.json()["id"]


async def test_a_kept_answer_tells_a_thief_of_the_table_no_password(
    api: Api, database: asyncpg.Connection
) -> None:
    await register(api, "bert@example.com")
    row = await database.fetchrow("SELECT * FROM idempotency_keys")
    assert PASSWORD not in str(row)


# Whose a key is.


async def test_a_strangers_key_neither_blocks_nor_replays(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    """A key without a user is its client address's own."""
    async with running(replace(settings, trusted_proxies=(ip_network("127.0.0.1"),))) as api:
        here, elsewhere, beside = (
            {**KEY, "X-Forwarded-For": address}
            for address in ("203.0.113.1", "198.51.100.1", "203.0.113.2")
        )
        first = await register(api, "anna@example.com", here)
        assert first.status == 201
        stolen = await register(api, "anna@example.com", elsewhere)
        assert_problem(stolen, 409, "email-taken", ["#/email"])
        assert "Idempotency-Replayed" not in stolen.headers
        assert (await register(api, "bert@example.com", beside)).status == 201
        assert_repeated(await register(api, "anna@example.com", here), first)
        other = await register(api, "carl@example.com", here)
        assert_problem(other, 422, "idempotency-key-reused")
    scopes = str(await database.fetch("SELECT scope FROM idempotency_keys"))
    assert "203.0.113" not in scopes


async def test_what_a_user_was_refused_is_erased_with_the_account(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    bert = await api.new_person()
    for person in (anna, bert):
        for headers, status in ((KEY, 201), (OTHER_KEY, 409)):
            wish = {"expires_in_days": 1}
            answer = await api.post("/referral-code", wish, by=person, headers=headers)
            assert answer.status == status
    kept = await database.fetch("SELECT user_id::text FROM idempotency_keys")
    assert sorted(row["user_id"] for row in kept) == sorted([anna.user_id, bert.user_id] * 2)
    # As the release before kept it.
    await database.execute("UPDATE idempotency_keys SET user_id = NULL WHERE status = 409")
    await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    rows = await database.fetch("SELECT scope FROM idempotency_keys")
    assert [row["scope"] for row in rows] == [bert.user_id] * 2


async def test_of_more_than_1_000_keys_of_a_user_the_oldest_is_forgotten(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    bert = await api.new_person()
    await database.execute(
        "INSERT INTO idempotency_keys"
        " (scope, idempotency_key, fingerprint, created_at, status, body, user_id)"
        " SELECT $1::text, 'key ' || number, '', now() - number * interval '1 s', 409, '', $1::uuid"
        "   FROM generate_series(1, 995) AS number",
        anna.user_id,
    )
    wish = {"expires_in_days": 1}
    answers = await asyncio.gather(
        *(
            api.post("/referral-code", wish, by=anna, headers={"Idempotency-Key": f"new-{number}"})
            for number in range(20)
        ),
        api.post("/referral-code", wish, by=bert, headers=KEY),
    )
    assert sorted(answer.status for answer in answers) == [201, 201, *[409] * 19]
    rows = await database.fetch("SELECT scope, idempotency_key FROM idempotency_keys")
    mine = {row["idempotency_key"] for row in rows if row["scope"] == anna.user_id}
    assert len(mine) == MOST_KEPT
    assert {f"new-{number}" for number in range(20)} < mine
    assert {"key 980", "key 981"} & mine == {"key 980"}
    assert len(rows) == MOST_KEPT + 1


async def test_a_refusal_that_comes_after_the_erasure_is_not_kept(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    key = IdempotencyKey(anna.user_id, "key", b"fingerprint", UUID(anna.user_id))
    await api.app[SERVICES].refusals.keep(key, IdempotentAnswer(409, b"{}"))
    assert await database.fetchval("SELECT count(*) FROM idempotency_keys") == 0
