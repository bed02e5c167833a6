"""A code's name is its first owner's for ever, and so are the names that look like it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain import referral_codes
from service.domain.referral_codes import UNUSED_KEPT_FOR
from service.use_cases.housekeeping import Housekeeping
from tests.api.assertions import assert_problem
from tests.factories import PASSWORD, Answer, Api, Person

DAYS: Final = {"expires_in_days": 7}
METHODS: Final = pytest.mark.parametrize("method", ["POST", "PUT"])
End = Callable[[Api, Person], Awaitable[None]]


async def choose(api: Api, owner: Person, code: str, method: str = "POST") -> Answer:
    return await api.call(method, "/referral-code", {**DAYS, "code": code}, by=owner)


async def delete(api: Api, owner: Person) -> None:
    assert (await api.delete("/referral-code", by=owner)).status == 204


async def replace(api: Api, owner: Person) -> None:
    assert (await api.put("/referral-code", DAYS, by=owner)).status == 200


async def expire(api: Api, owner: Person) -> None:
    api.clock.ahead += timedelta(days=7, seconds=1)


async def expire_and_make_another(api: Api, owner: Person) -> None:
    await expire(api, owner)
    await api.new_code(await api.signed_in(owner.email))


async def use_up(api: Api, owner: Person) -> None:
    code = (await api.get("/referral-code", by=owner)).json()["code"]
    await api.put("/referral-code", {**DAYS, "code": code, "max_uses": 1}, by=owner)
    assert (await api.register(referral_code=code)).status == 201


async def erase(api: Api, owner: Person) -> None:
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=owner)).status == 204


async def delete_and_tidy_up(api: Api, owner: Person) -> None:
    await delete(api, owner)
    api.clock.ahead += UNUSED_KEPT_FOR + timedelta(seconds=1)
    await Housekeeping(api.app[SERVICES].database, api.clock).tidy_up()


ENDS: Final = [
    *(delete, replace, expire, expire_and_make_another, use_up, erase, delete_and_tidy_up)
]


@METHODS
@pytest.mark.parametrize("end", ENDS)
async def test_however_a_code_ended_nobody_else_gets_its_name(
    api: Api, anna: Person, method: str, end: End
) -> None:
    await api.new_code(anna, code="ANNA-2026")
    await end(api, anna)
    mallory = await api.new_person()
    for name in ("ANNA-2026", "anna-2026", "ANNA-2O26", " anna-2o26 "):
        answer = await choose(api, mallory, name, method)
        assert_problem(answer, 409, "referral-code-taken", ["#/code"])
    assert (await api.get("/referral-code", by=mallory)).status == 404
    assert (await choose(api, mallory, "ANNA-2027", method)).status == 201


@pytest.mark.parametrize("end", [end for end in ENDS if end is not erase])
async def test_the_owner_gets_the_name_again_and_those_that_look_like_it(
    api: Api, anna: Person, end: End
) -> None:
    await api.new_code(anna, code="ANNA-2026")
    await end(api, anna)
    anna = await api.signed_in(anna.email)
    for name in ("ANNA-2026", "anna-2o26"):
        made = await choose(api, anna, name, "PUT")
        assert made.status in {200, 201}
        assert made.json()["code"] == name.upper()
        assert (await api.register(referral_code=name)).status == 201


async def test_an_erased_owner_who_comes_back_is_another_one(api: Api, anna: Person) -> None:
    await api.new_code(anna, code="ANNA-2026")
    await erase(api, anna)
    anna = await api.new_person(anna.email)
    assert_problem(await choose(api, anna, "ANNA-2026"), 409, "referral-code-taken", ["#/code"])


async def test_a_name_does_not_keep_the_person_whose_account_is_erased(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    bert = await api.new_person()
    for owner in (anna, bert):
        await api.new_code(owner)
        await api.put("/referral-code", DAYS, by=owner)
    await erase(api, anna)
    owners = await database.fetch("SELECT owner_id FROM referral_code_names")
    assert sorted(str(row["owner_id"]) for row in owners) == [*[bert.user_id] * 2, *["None"] * 2]


@METHODS
async def test_a_creation_that_is_refused_takes_no_name(
    api: Api, anna: Person, method: str, database: asyncpg.Connection
) -> None:
    bert = await api.new_person()
    await api.new_code(bert, code="BERT-2026")
    body = {"expires_at": "2001-01-01T00:00:00Z", "code": "FREE-1"}
    assert (await api.call(method, "/referral-code", body, by=anna)).status == 422
    await api.new_code(anna)
    assert (await choose(api, anna, "FREE-2")).status == 409
    assert (await choose(api, anna, "BERT-2O26", method)).status == 409
    for name in ("FREE-1", "FREE-2"):
        assert (await choose(api, bert, name, "PUT")).status == 200
    assert await database.fetchval("SELECT count(*) FROM referral_code_names") == 4


async def test_who_holds_a_live_code_is_told_so_whatever_the_name(api: Api, anna: Person) -> None:
    await api.new_code(anna, code="ANNA-2026")
    await api.new_code(await api.new_person(), code="BERT-2026")
    for name in ("BERT-2026", "BERT-2O26", "ANNA-2026", "ANNA-2O26", "NEW-2026"):
        assert_problem(await choose(api, anna, name), 409, "referral-code-exists")


@METHODS
async def test_a_drawn_name_that_was_anothers_is_drawn_again(
    api: Api, anna: Person, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter(["ABCDEFGHJK", "ABCDEFGHJK", "ABCDEFGHJK", "KJHGFEDCBA"])
    monkeypatch.setattr(referral_codes, "generate_code", lambda: next(drawn))
    await api.new_code(anna)
    await delete(api, anna)
    made = await api.call(method, "/referral-code", DAYS, by=await api.new_person())
    assert (made.status, made.json()["code"]) == (201, "KJHGFEDCBA")


# A code that was typed with look-alikes.

SPELLINGS: Final = ["TOOL-101", "tool-101", "T00L-1O1", "tOo1-lOi", "TO0I-IOL", " t00l-i0i\n"]


@pytest.mark.parametrize("made", ["TOOL-101", "T00I-LO1"])
@pytest.mark.parametrize("max_uses", [None, 10])
async def test_a_code_is_found_however_it_was_read(
    api: Api, anna: Person, made: str, max_uses: int | None
) -> None:
    await api.new_code(anna, code=made, max_uses=max_uses)
    for typed in SPELLINGS:
        checked = await api.get(f"/codes/{quote(typed, safe='')}")
        assert (checked.status, checked.json()["code"]) == (200, made)
        registered = await api.register(referral_code=typed)
        assert (registered.status, registered.json()["referrer_id"]) == (201, anna.user_id)
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == len(SPELLINGS)
    referrals = (await api.get("/referrals/me", by=anna)).json()["items"]
    assert {referral["code"] for referral in referrals} == {made}
    for other in ("TOOL-102", "TOOL101", "TOQL-101"):
        assert (await api.register(referral_code=other)).status == 422
        assert (await api.get(f"/codes/{other}")).status == 404


async def test_of_two_names_that_look_alike_each_leads_to_its_own_code(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """From before names had owners. Any other spelling leads to the owner of the name."""
    bert = await api.new_person()
    await api.new_code(anna, code="TOLL-1")
    await database.execute("ALTER TABLE referral_codes DISABLE TRIGGER USER")
    try:
        await api.new_code(bert, code="T0LL-1")
    finally:
        await database.execute("ALTER TABLE referral_codes ENABLE TRIGGER USER")

    async def referrer(typed: str) -> Any:
        return (await api.register(referral_code=typed)).json().get("referrer_id")

    assert [await referrer(typed) for typed in ("TOLL-1", "T0LL-1", "TOIL-1", "T01L-I")] == [
        anna.user_id,
        bert.user_id,
        anna.user_id,
        anna.user_id,
    ]
    await delete(api, anna)
    assert [await referrer(typed) for typed in ("TOLL-1", "T0LL-1", "TOIL-1")] == [
        None,
        bert.user_id,
        None,
    ]
    await api.new_code(anna, code="TOLL-1")
    await delete(api, bert)
    assert [await referrer(typed) for typed in ("TOLL-1", "T0LL-1")] == [anna.user_id] * 2
    assert_problem(await choose(api, bert, "T0LL-1"), 409, "referral-code-taken", ["#/code"])


# At the same instant.


async def test_a_code_made_beside_the_erasure_of_its_owner_does_not_outlive_it(
    api: Api, database: asyncpg.Connection
) -> None:
    """The owner's row, which both lock: without FOR KEY SHARE in ADD, or the second look of
    `erase`, a code would live on without an owner."""
    for round_ in range(20):
        owner = await api.new_person()
        erased, *made = await asyncio.gather(
            api.delete("/users/me", {"password": PASSWORD}, by=owner),
            *(
                api.call(method, "/referral-code", {**DAYS, "code": f"NAME-{round_}"}, by=owner)
                for method in ("POST", "PUT", "PUT")
            ),
        )
        assert erased.status == 204
        assert {answer.status for answer in made} <= {200, 201, 401, 409}
        live = "SELECT count(*) FROM referral_codes WHERE ended_at IS NULL"
        assert await database.fetchval(live) == 0
        owned = "SELECT count(*) FROM referral_code_names WHERE owner_id IS NOT NULL"
        assert await database.fetchval(owned) == 0
        if any(answer.status in {200, 201} for answer in made):
            mallory = await api.new_person()
            taken = await choose(api, mallory, f"NAME-{round_}")
            assert_problem(taken, 409, "referral-code-taken", ["#/code"])
