"""Many requests at one instant: what holds, and which index or lock makes it hold.

For each unique index there is a proof: the same race without the index goes wrong.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import asyncpg
import pytest

from service.security.password_hashing import Argon2
from service.settings.settings import Settings
from tests.api.assertions import assert_problem
from tests.api.conftest import replacing_the_only_code
from tests.factories import PASSWORD, Answer, Api, Person, new_email, running
from tests.sql.racing import until_blocked

DAYS: Final = {"expires_in_days": 7}
CLAIM: Final = "referral_codes_claim_their_names"
Race = Callable[[Api], Coroutine[Any, Any, Sequence[Answer]]]


def statuses(answers: Sequence[Answer]) -> dict[int, int]:
    return dict(Counter(answer.status for answer in answers))


async def create_20_times(api: Api) -> Sequence[Answer]:
    owner = await api.new_person()
    return await asyncio.gather(*(api.post("/referral-code", DAYS, by=owner) for _ in range(20)))


async def register_one_email_10_times(api: Api) -> Sequence[Answer]:
    email = new_email()
    spellings = [email[:index] + email[index:].upper() for index in range(10)]
    return await asyncio.gather(*map(api.register, spellings))


async def choose_8_codes(api: Api, codes: Sequence[str]) -> Sequence[Answer]:
    owners = [await api.new_person() for _ in codes]
    return await asyncio.gather(
        *(
            api.post("/referral-code", {**DAYS, "code": code}, by=owner)
            for owner, code in zip(owners, codes, strict=True)
        )
    )


async def choose_one_code_8_times(api: Api) -> Sequence[Answer]:
    return await choose_8_codes(api, ["SPRING-2026"] * 8)


async def choose_8_codes_that_look_alike(api: Api) -> Sequence[Answer]:
    return await choose_8_codes(api, [f"TO{one}L{two}" for one in "1IL" for two in "1IL"][1:])


RACES: Final = [
    # race, what makes it hold, answers, code of the losers' problem
    (
        create_20_times,
        ["referral_codes_one_live_per_owner"],
        {201: 1, 409: 19},
        "referral-code-exists",
    ),
    (register_one_email_10_times, ["users_email_unique"], {201: 1, 409: 9}, "email-taken"),
    (
        choose_one_code_8_times,
        ["referral_codes_live_code_unique", CLAIM],
        {201: 1, 409: 7},
        "referral-code-taken",
    ),
    (choose_8_codes_that_look_alike, [CLAIM], {201: 1, 409: 7}, "referral-code-taken"),
]


@pytest.mark.parametrize(("race", "_", "expected", "code"), RACES)
async def test_one_wins_and_the_others_are_told_why(
    api: Api, race: Race, _: Sequence[str], expected: dict[int, int], code: str
) -> None:
    answers = await race(api)
    assert statuses(answers) == expected
    assert {answer.json()["code"] for answer in answers if answer.status != 201} == {code}


@pytest.mark.parametrize(("race", "rules", "expected", "_"), RACES)
async def test_without_what_makes_it_hold_the_race_has_more_winners_than_one(
    api: Api,
    database: asyncpg.Connection,
    race: Race,
    rules: Sequence[str],
    expected: dict[int, int],
    _: str,
) -> None:
    async with AsyncExitStack() as stack:
        for rule in rules:
            await stack.enter_async_context(without(database, rule))
        answers = await race(api)
    assert statuses(answers) == {201: sum(expected.values())}


@asynccontextmanager
async def without(database: asyncpg.Connection, rule: str) -> AsyncIterator[None]:
    """Drop the index or the constraint of this name, and have it back, with empty tables, after.

    The trigger of this name only rests meanwhile.
    """
    constraint = await database.fetchrow(
        "SELECT conrelid::regclass::text AS table, pg_get_constraintdef(oid) AS definition"
        " FROM pg_constraint WHERE conname = $1",
        rule,
    )
    if rule == CLAIM:
        drop = f"ALTER TABLE referral_codes DISABLE TRIGGER {rule}"
        restore = f"ALTER TABLE referral_codes ENABLE TRIGGER {rule}"
    elif constraint is None:
        drop = f"DROP INDEX {rule}"
        restore = await database.fetchval("SELECT pg_get_indexdef($1::text::regclass)", rule)
    else:
        drop = f"ALTER TABLE {constraint['table']} DROP CONSTRAINT {rule}"
        restore = (
            f"ALTER TABLE {constraint['table']} ADD CONSTRAINT {rule} {constraint['definition']}"
        )
    await database.execute(drop)
    try:
        yield
    finally:
        await database.execute("TRUNCATE users, referral_codes, referrals CASCADE")
        await database.execute(restore)


async def test_an_expired_code_lets_one_of_20_new_ones_in(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """The expired row still holds referral_codes_one_live_per_owner: each creation ends it first,
    and its row lock makes the others wait."""
    await api.new_code(anna)
    await database.execute(
        "UPDATE referral_codes"
        " SET created_at = now() - interval '2 days', expires_at = now() - interval '1 day'"
    )
    answers = await asyncio.gather(*(api.post("/referral-code", DAYS, by=anna) for _ in range(20)))
    assert statuses(answers) == {201: 1, 409: 19}


async def test_of_20_registrations_max_uses_5_lets_5_in(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """The lock on the code's row: TAKE counts in the UPDATE that checks, not after it."""
    code = await api.new_code(anna, max_uses=5)
    answers = await asyncio.gather(*(api.register(referral_code=code) for _ in range(20)))
    assert statuses(answers) == {201: 5, 422: 15}
    for answer in answers:
        if answer.status == 422:
            assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
    assert await database.fetchval("SELECT uses FROM referral_codes") == 5
    assert await database.fetchval("SELECT count(*) FROM users") == 1 + 5, "no account is left over"
    referrals = (await api.get("/referrals/me", by=anna)).json()["items"]
    made = {answer.json()["id"] for answer in answers if answer.status == 201}
    assert {referral["id"] for referral in referrals} == made
    assert (await api.get(f"/referral-code/{anna.email}")).status == 404


async def test_max_uses_that_are_left_are_shown(api: Api, anna: Person) -> None:
    """As above, with fewer registrations than uses: the owner sees the exact count."""
    code = await api.new_code(anna, max_uses=30)
    answers = await asyncio.gather(*(api.register(referral_code=code) for _ in range(20)))
    assert statuses(answers) == {201: 20}
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 20


async def test_of_20_registrations_with_an_unlimited_code_all_count(api: Api, anna: Person) -> None:
    """ON CONFLICT DO UPDATE on the primary key of referral_code_uses adds to what is there now."""
    code = await api.new_code(anna)
    answers = await asyncio.gather(*(api.register(referral_code=code) for _ in range(20)))
    assert statuses(answers) == {201: 20}
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 20


async def test_an_email_that_registers_10_times_by_code_counts_once(api: Api, anna: Person) -> None:
    """users_email_unique comes first, and the rollback takes the use back."""
    code = await api.new_code(anna, max_uses=5)
    answers = await asyncio.gather(
        *(api.register("bert@example.com", referral_code=code) for _ in range(10))
    )
    assert statuses(answers) == {201: 1, 409: 9}
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 1


async def test_creations_replacements_and_deletions_leave_one_live_code_at_most(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """referral_codes_one_live_per_owner; a replacement that meets a creation is tried again, and
    the lock on the owner's row lets one replacement at a time try."""
    allowed = {"POST": {201, 409}, "PUT": {200, 201}, "DELETE": {204, 404}, "GET": {200, 404}}
    for _ in range(4):
        calls = [*allowed] * 5
        answers = await asyncio.gather(
            *(
                api.call(method, "/referral-code", DAYS if method[0] == "P" else None, by=anna)
                for method in calls
            )
        )
        for method, answer in zip(calls, answers, strict=True):
            assert answer.status in allowed[method], (method, answer.body)
        live = await database.fetch("SELECT code FROM referral_codes WHERE ended_at IS NULL")
        found = await api.get(f"/referral-code/{anna.email}")
        assert [row["code"] for row in live] == [found.json()["code"]] * (found.status == 200)
        assert len(live) == (found.status == 200)


async def test_of_40_replacements_one_is_new_and_the_last_one_lives(
    api: Api, other: Api, anna: Person
) -> None:
    """The lock on the owner's row (HOLD) puts them in a row: none is told of a conflict."""
    answers = await asyncio.gather(
        *(process.put("/referral-code", DAYS, by=anna) for process in [api, other] * 20)
    )
    assert statuses(answers) == {201: 1, 200: 39}
    live = (await api.get("/referral-code", by=anna)).json()
    assert live in [answer.json() for answer in answers]
    assert (await api.get(f"/referral-code/{anna.email}")).json()["code"] == live["code"]


async def test_a_deletion_beside_replacements_finds_a_live_code(
    api: Api, other: Api, anna: Person
) -> None:
    for _ in range(10):
        await api.put("/referral-code", DAYS, by=anna)
        deleted, *replaced = await asyncio.gather(
            other.delete("/referral-code", by=anna),
            *(api.put("/referral-code", DAYS, by=anna) for _ in range(5)),
        )
        assert deleted.status == 204
        assert set(statuses(replaced)) <= {200, 201}


async def test_a_deletion_that_waits_for_a_replacement_deletes_the_new_code(
    api: Api, settings: Settings, anna: Person, database: asyncpg.Connection
) -> None:
    """Its statement finds the old code ended, and does not see the new one: without another look it
    would say that there is none."""
    await api.put("/referral-code", DAYS, by=anna)
    async with replacing_the_only_code(settings):
        deletion = await until_blocked(database, api.delete("/referral-code", by=anna))
    assert (await deletion).status == 204
    assert (await api.get("/referral-code", by=anna)).status == 404


@pytest.mark.parametrize("wish", [{}, {"max_uses": 100}], ids=["unlimited", "limited"])
async def test_after_the_answer_to_a_deletion_no_registration_gets_in(
    api: Api, anna: Person, database: asyncpg.Connection, wish: dict[str, int]
) -> None:
    """FOR SHARE, or the UPDATE, on the code's row: the deletion waits for registrations under way,
    and those that come later find no row."""
    for _ in range(5):
        code = await api.new_code(anna, **wish)
        early = [asyncio.create_task(api.register(referral_code=code)) for _ in range(15)]
        await asyncio.sleep(0.02)
        assert (await api.delete("/referral-code", by=anna)).status == 204
        got_in = await database.fetchval("SELECT count(*) FROM referrals WHERE code = $1", code)
        late = await asyncio.gather(*(api.register(referral_code=code) for _ in range(3)))
        assert statuses(late) == {422: 3}
        counts = statuses(await asyncio.gather(*early))
        assert counts.pop(201, 0) == got_in
        assert set(counts) <= {422}


async def test_of_20_refreshes_of_one_token_one_wins_and_the_session_ends(
    api: Api, anna: Person
) -> None:
    """The counter in ROTATE's WHERE: the row is locked, and found changed by all but the first.
    That a token was used twice means that it was stolen, so that the winner's is of no use."""
    body = {"refresh_token": anna.refresh_token}
    answers = await asyncio.gather(*(api.post("/auth/refresh", body) for _ in range(20)))
    assert statuses(answers) == {200: 1, 401: 19}
    [won] = [answer.json() for answer in answers if answer.status == 200]
    again = await api.post("/auth/refresh", {"refresh_token": won["refresh_token"]})
    assert_problem(again, 401, "invalid-token")
    assert_problem(await api.get("/users/me", by=won["access_token"]), 401, "invalid-token")


async def test_no_sign_in_with_the_old_password_outlives_its_change(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """The lock on the user's row where a session is stored, with the hash that was verified."""
    change = {"current_password": PASSWORD, "new_password": "another walk by the sea"}

    changing = asyncio.create_task(api.post("/auth/password/change", change, by=anna))
    signing_in = []
    while not changing.done():
        signing_in.append(asyncio.create_task(api.log_in(anna.email)))
        await asyncio.sleep(0.002)
    assert (await changing).status == 204
    signed_in = await asyncio.gather(*signing_in, api.log_in(anna.email))
    assert set(statuses(signed_in)) == {200, 401}
    assert await database.fetchval("SELECT count(*) FROM sessions WHERE ended_at IS NULL") == 1
    for answer in signed_in:
        if answer.status == 200:
            old = await api.get("/users/me", by=answer.json()["access_token"])
            assert_problem(old, 401, "invalid-token")


async def test_the_right_password_is_right_for_all_who_sign_in_when_the_cost_has_changed(
    api: Api, anna: Person, settings: Settings
) -> None:
    """The first one stores a new hash, and the others are not verified against the old one."""
    dearer = replace(settings, argon2=Argon2(memory_kib=128, passes=2, lanes=1))
    async with running(dearer) as other:
        answers = await asyncio.gather(*(other.log_in(anna.email) for _ in range(10)))
    assert statuses(answers) == {200: 10}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        (
            "POST",
            "/auth/password/change",
            {"current_password": PASSWORD, "new_password": "another walk by the sea"},
        ),
        ("DELETE", "/users/me", {"password": PASSWORD}),
    ],
)
async def test_the_right_password_is_right_beside_a_sign_in_when_the_cost_has_changed(
    api: Api, settings: Settings, method: str, path: str, body: dict[str, str]
) -> None:
    dearer = replace(settings, argon2=Argon2(memory_kib=1024, passes=8, lanes=1))
    async with running(dearer) as other:
        for _ in range(5):
            person = await api.new_person()
            answer, *_ = await asyncio.gather(
                other.call(method, path, body, by=person),
                *(other.log_in(person.email) for _ in range(3)),
            )
            assert answer.status == 204, answer.body


async def test_parallel_requests_with_one_idempotency_key_make_one_account_and_get_one_answer(
    api: Api, database: asyncpg.Connection
) -> None:
    """The primary key of idempotency_keys: who comes second waits until the first commits."""
    answers = await asyncio.gather(
        *(
            api.post(
                "/auth/register",
                {"email": "anna@example.com", "password": PASSWORD},
                headers={"Idempotency-Key": "one"},
            )
            for _ in range(10)
        )
    )
    assert statuses(answers) == {201: 10}
    assert len({answer.body for answer in answers}) == 1
    replayed = [answer for answer in answers if "Idempotency-Replayed" in answer.headers]
    assert len(replayed) == 9
    assert await database.fetchval("SELECT count(*) FROM users") == 1


async def test_of_parallel_erasures_one_does_it_and_none_fails(api: Api, anna: Person) -> None:
    """ERASE finds the row by the hash that was verified, and locks it."""
    answers = await asyncio.gather(
        *(api.delete("/users/me", {"password": PASSWORD}, by=anna) for _ in range(5))
    )
    counts = statuses(answers)
    assert counts.pop(204) == 1
    assert set(counts) <= {401}


async def test_registrations_beside_the_erasure_of_their_referrer_are_whole_or_refused(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """Both lock the code before the owner, so that neither waits for the other for ever."""
    code = await api.new_code(anna)
    erased, *answers = await asyncio.gather(
        api.delete("/users/me", {"password": PASSWORD}, by=anna),
        *(api.register(referral_code=code) for _ in range(10)),
    )
    assert erased.status == 204
    counts = statuses(answers)
    assert set(counts) <= {201, 422}
    assert await database.fetchval("SELECT count(*) FROM referrals") == counts.get(201, 0)
