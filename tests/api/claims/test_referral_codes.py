"""The referral code of a claim counts with the confirmation."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.api.assertions import assert_problem
from tests.api.claims.conftest import new_person, register
from tests.api.mailing import ANNA, Postman, confirm
from tests.factories import PASSWORD, Api, Person, new_email


@pytest.mark.parametrize("max_uses", [None, 2])
async def test_a_use_and_a_place_in_the_list_come_with_the_confirmation(
    strict: Api, postman: Postman, max_uses: int | None
) -> None:
    bert = await new_person(strict, postman, "bert@example.com")
    code = await strict.new_code(bert, max_uses=max_uses)
    anna = await new_person(strict, postman, ANNA, referral_code=code.lower())
    assert (await strict.get("/users/me", by=anna)).json()["referrer_id"] == bert.user_id
    [referral] = (await strict.get("/referrals/me", by=bert)).json()["items"]
    assert (referral["id"], referral["code"]) == (anna.user_id, code)
    assert (await strict.get("/referral-code", by=bert)).json()["uses"] == 1


async def test_a_code_that_is_not_live_is_refused_whoever_has_the_email(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    bert = await new_person(strict, postman, "bert@example.com")
    code = await strict.new_code(bert)
    await strict.delete("/referral-code", by=bert)
    for unusable in (code, "NOBODYS", "?"):
        for email in ("bert@example.com", "unknown@example.com"):
            answer = await strict.register(email, referral_code=unusable)
            assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
    assert await database.fetchval("SELECT count(*) FROM claims") == 0


Happening = Callable[[Api, Person, asyncpg.Connection], Awaitable[Any]]


async def replaced(api: Api, owner: Person, _: asyncpg.Connection) -> None:
    assert (await api.put("/referral-code", {"expires_in_days": 9}, by=owner)).status == 200


async def deleted(api: Api, owner: Person, _: asyncpg.Connection) -> None:
    assert (await api.delete("/referral-code", by=owner)).status == 204


async def expired(_: Api, __: Person, database: asyncpg.Connection) -> None:
    await database.execute(
        "UPDATE referral_codes SET created_at = created_at - interval '30 d',"
        " expires_at = expires_at - interval '30 d'"
    )


async def disabled(_: Api, owner: Person, database: asyncpg.Connection) -> None:
    await database.execute("UPDATE users SET disabled_at = now() WHERE email = $1", owner.email)


async def erased(api: Api, owner: Person, _: asyncpg.Connection) -> None:
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=owner)).status == 204


async def used_up(_: Api, __: Person, database: asyncpg.Connection) -> None:
    await database.execute(
        "UPDATE referral_codes SET uses = max_uses, ended_at = now() WHERE max_uses IS NOT NULL"
    )


@pytest.mark.parametrize(
    ("happening", "max_uses", "counts"),
    [
        (replaced, None, True),
        (replaced, 1, True),
        (deleted, None, True),
        (deleted, 1, True),
        (expired, None, True),
        (expired, 1, True),
        (disabled, None, True),
        (disabled, 1, True),
        (erased, None, False),
        (erased, 1, False),
        (used_up, 1, False),
        (used_up, 5, False),
    ],
)
async def test_what_becomes_of_a_code_between_registering_and_confirming(
    strict: Api,
    postman: Postman,
    database: asyncpg.Connection,
    happening: Happening,
    max_uses: int | None,
    counts: bool,
) -> None:
    """One that has died counts, one that is used up or whose owner is erased does not."""
    bert = await new_person(strict, postman, "bert@example.com")
    code = await strict.new_code(bert, max_uses=max_uses)
    await register(strict, referral_code=code)
    [token] = await postman.tokens()
    await happening(strict, bert, database)
    assert (await confirm(strict, token)).status == 204
    anna = await strict.signed_in(ANNA)
    referrer_id = (await strict.get("/users/me", by=anna)).json()["referrer_id"]
    assert referrer_id == (bert.user_id if counts else None)
    assert await database.fetchval("SELECT count(*) FROM referrals") == counts
    uses = await database.fetchval(
        "SELECT c.uses + coalesce((SELECT sum(uses) FROM referral_code_uses), 0)"
        "  FROM referral_codes c WHERE c.code = $1",
        code,
    )
    assert uses == (max_uses if happening is used_up else counts)
    assert (
        await database.fetchval(
            "SELECT ended_at IS NOT NULL FROM referral_codes WHERE code = $1", code
        )
        or happening is expired
        or (max_uses is None and happening is disabled)
    )


async def test_of_claims_with_one_code_confirmed_at_once_max_uses_have_the_referrer(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    """Without `uses < max_uses` in TAKE_BY_ID more would, or it would be a 500."""
    bert = await new_person(strict, postman, "bert@example.com")
    code = await strict.new_code(bert, max_uses=1)
    for _ in range(6):
        await register(strict, new_email(), referral_code=code)
    tokens = await postman.tokens()
    answers = await asyncio.gather(*(confirm(strict, token) for token in tokens))
    assert [answer.status for answer in answers] == [204] * 6
    assert await database.fetchval("SELECT count(*) FROM users") == 7
    assert await database.fetchval("SELECT count(*) FROM referrals") == 1
    [row] = await database.fetch("SELECT uses, ended_at FROM referral_codes")
    assert row["uses"] == 1
    assert row["ended_at"] is not None
    assert (await strict.get(f"/referral-code/{bert.email}")).status == 404


async def erase_once_referred(
    strict: Api, postman: Postman, database: asyncpg.Connection, code: str
) -> None:
    anna = await new_person(strict, postman, ANNA, referral_code=code)
    await erased(strict, anna, database)


async def move_once_referred(
    strict: Api, postman: Postman, database: asyncpg.Connection, code: str
) -> None:
    anna = await new_person(strict, postman, ANNA, referral_code=code)
    strict.clock.ahead += timedelta(hours=1)
    change = {"new_email": "anna@example.org", "password": PASSWORD}
    anna = await strict.signed_in(ANNA)
    assert (await strict.post("/auth/email/change", change, by=anna)).status == 202
    [token] = await postman.tokens()
    assert (await confirm(strict, token)).status == 204
    await postman.deliver()


@pytest.mark.parametrize("max_uses", [None, 9])
@pytest.mark.parametrize("gone", [erase_once_referred, move_once_referred])
async def test_who_was_referred_before_comes_back_without_a_referrer_and_nobody_learns_it(
    strict: Api,
    postman: Postman,
    database: asyncpg.Connection,
    gone: Callable[[Api, Postman, asyncpg.Connection, str], Awaitable[None]],
    max_uses: int | None,
) -> None:
    """A 422 would reveal to the code's owner that the address was referred before."""
    bert = await new_person(strict, postman, "bert@example.com")
    code = await strict.new_code(bert, max_uses=max_uses)
    await gone(strict, postman, database, code)
    strict.clock.ahead += timedelta(hours=1)
    anna = await new_person(strict, postman, ANNA, referral_code=code)
    assert (await strict.get("/users/me", by=anna)).json()["referrer_id"] is None
    bert = await strict.signed_in(bert.email)
    assert (await strict.get("/referral-code", by=bert)).json()["uses"] == 1
    assert len((await strict.get("/referrals/me", by=bert)).json()["items"]) == 1
