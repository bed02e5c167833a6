"""With EMAIL_CONFIRMATION=required a code counts only if its owner's email address is confirmed.

The owners here have registered before it was required, so that they are signed in.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import asyncpg
import pytest

from service.settings.settings import Settings
from tests.api.assertions import assert_problem
from tests.factories import Api, Person, running

DAYS: Final = {"expires_in_days": 7}
METHODS: Final = pytest.mark.parametrize("method", ["POST", "PUT"])


@pytest.fixture
async def strict(api: Api, settings: Settings) -> AsyncIterator[Api]:
    """A process of the service, after the other one, for which addresses have to be confirmed."""
    async with running(replace(settings, confirmation_required=True)) as strict:
        yield strict


async def confirm(database: asyncpg.Connection, person: Person) -> None:
    await database.execute(
        "UPDATE users SET email_confirmed_at = now() WHERE user_id = $1::text::uuid", person.user_id
    )


@METHODS
async def test_nobody_makes_a_code_before_confirming(
    strict: Api, anna: Person, database: asyncpg.Connection, method: str
) -> None:
    wish = {**DAYS, "code": "ANNA-2026"}
    answer = await strict.call(method, "/referral-code", wish, by=anna)
    assert_problem(answer, 403, "email-not-confirmed")
    for table in ("referral_codes", "referral_code_names", "jobs"):
        assert await database.fetchval(f"SELECT count(*) FROM {table}") == 0, table
    await confirm(database, anna)
    assert (await strict.call(method, "/referral-code", wish, by=anna)).status == 201


async def test_a_refusal_for_want_of_a_confirmation_is_not_repeated(
    strict: Api, anna: Person, database: asyncpg.Connection
) -> None:
    key = {"Idempotency-Key": "one"}
    assert (await strict.post("/referral-code", DAYS, by=anna, headers=key)).status == 403
    await confirm(database, anna)
    assert (await strict.post("/referral-code", DAYS, by=anna, headers=key)).status == 201


async def test_a_code_from_before_is_kept_and_does_not_count(
    api: Api, strict: Api, anna: Person, database: asyncpg.Connection
) -> None:
    code = await api.new_code(anna, code="ANNA-2026")
    own = (await api.get("/referral-code", by=anna)).json()
    for method, body in (("POST", DAYS), ("PUT", DAYS), ("PATCH", {"max_uses": 9})):
        answer = await strict.call(method, "/referral-code", body, by=anna)
        assert_problem(answer, 403, "email-not-confirmed")
    assert (await strict.get("/referral-code", by=anna)).json() == own
    for typed in (code, "ANNA-2O26"):
        for email in ("bert@example.com", anna.email):
            answer = await strict.register(email, referral_code=typed)
            assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
        answer = await strict.get(f"/codes/{typed}")
        assert_problem(answer, 404, "referral-code-not-found")
        assert (await api.get(f"/codes/{typed}")).status == 200
    assert await database.fetchval("SELECT count(*) FROM users") == 1
    assert (await strict.delete("/referral-code", by=anna)).status == 204


async def test_a_code_counts_again_from_the_confirmation_on(
    api: Api, strict: Api, anna: Person, database: asyncpg.Connection
) -> None:
    await api.new_code(anna, code="ANNA-2026")
    await confirm(database, anna)
    assert (await strict.get(f"/referral-code/{anna.email}")).status == 200
    assert (await strict.get("/codes/ANNA-2O26")).status == 200
    assert (await strict.register(referral_code="ANNA-2026")).status == 202
    assert (await strict.patch("/referral-code", {"max_uses": 9}, by=anna)).status == 200


async def test_what_one_mode_has_kept_in_the_cache_is_not_given_in_the_other(
    api: Api, strict: Api, anna: Person
) -> None:
    """Without the variant of FORM an answer would outlive the change of the setting."""
    path = f"/referral-code/{anna.email}"
    await api.new_code(anna)
    for _ in range(3):
        assert (await api.get(path)).status == 200
        assert (await strict.get(path)).status == 404
    await api.delete("/referral-code", by=anna)
    assert (await api.get(path)).status == 404
