"""Accounts: registering, reading and erasing one's own."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

from service.settings.settings import Settings, read_settings
from tests.api.assertions import assert_problem
from tests.factories import PASSWORD, Api, Person, new_email, running

USER_MEMBERS = {"id", "email", "email_confirmed", "role", "created_at", "referrer_id"}


async def test_an_account_is_made_and_shown(api: Api) -> None:
    before = datetime.now(UTC)
    registered = await api.register("Anna.Smith@Example.COM")
    assert registered.status == 201
    assert registered.headers["Content-Type"] == "application/json"
    user = registered.json()
    assert set(user) == USER_MEMBERS
    assert user["email"] == "Anna.Smith@Example.COM", "as it was written"
    assert UUID(user["id"]).version == 7
    assert user["created_at"].endswith("Z")
    assert before <= datetime.fromisoformat(user["created_at"]) <= datetime.now(UTC)
    assert (user["email_confirmed"], user["role"], user["referrer_id"]) == (False, "user", None)
    anna = await api.signed_in("anna.smith@example.com")
    assert (await api.get("/users/me", by=anna)).json() == user


async def test_nothing_about_a_password_is_shown_or_stored(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    shown = await api.get("/users/me", by=anna)
    assert b"password" not in shown.body
    stored = await database.fetchval("SELECT password_hash FROM users")
    assert stored.startswith("$argon2id$")
    assert PASSWORD not in stored


@pytest.mark.parametrize("email", ["anna@example.com", "ANNA@example.com", "anna@EXAMPLE.com"])
async def test_an_email_that_is_taken_is_taken_in_any_case(
    api: Api, anna: Person, email: str
) -> None:
    assert_problem(await api.register(email), 409, "email-taken", ["#/email"])


async def test_two_spellings_of_a_domain_are_one_email(api: Api) -> None:
    assert (await api.register("anna@bücher.example")).status == 201
    taken = await api.register("anna@xn--bcher-kva.example")
    assert_problem(taken, 409, "email-taken", ["#/email"])
    assert (await api.log_in("Anna@BÜCHER.example")).status == 200


async def test_what_is_no_email_is_refused(api: Api, database: asyncpg.Connection) -> None:
    for email in (
        *("", "anna", "anna@", "@example.com", "a@b@c.example", "anna @example.com"),
        *("ä@example.com", "anna@example", "anna@-a.example", "anna@[127.0.0.1]"),
        "anna@" + "a" * 64 + ".example",
    ):
        answer = await api.post("/auth/register", {"email": email, "password": PASSWORD})
        assert answer.status == 422, email
        assert_problem(answer, 422, "validation-failed", ["#/email"])
    assert await database.fetchval("SELECT count(*) FROM users") == 0


async def test_a_password_that_is_short_long_common_or_the_email_is_refused(
    api: Api, database: asyncpg.Connection
) -> None:
    for password in (
        *("", "1234567", "ä" * 7, "x" * 129, "password1", "PASSWORD1", "Password1!"),
        *("anna-smith@example.com", "ANNA-SMITH@EXAMPLE.COM", "anna-smith", "example.com"),
        *("referrals", "Referrals1", "localhost", " " * 8, "a" * 10, "abcabcabc", "12345678"),
    ):
        answer = await api.register("anna-smith@example.com", password=password)
        assert answer.status == 422, password
        assert_problem(answer, 422, "validation-failed", ["#/password"])
    assert await database.fetchval("SELECT count(*) FROM users") == 0


async def test_any_other_password_is_accepted_and_good_as_a_whole(api: Api) -> None:
    for password in (
        *("x7-Q9!zp", "ツァイトガイスト", "🙂" * 128, "only small letters", " spaces around "),
        "a\u0000b\u0000c-d-e",
    ):
        email = new_email()
        assert (await api.register(email, password=password)).status == 201, password
        assert (await api.log_in(email, password)).status == 200, password
        for wrong in (password[:-1], password + "x", password + " ", password.strip() + "."):
            assert (await api.log_in(email, wrong)).status == 401, wrong


async def test_the_least_length_of_a_password_is_a_setting(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with running(replace(settings, password_min_length=15)) as api:
        short = await api.register(password="14 characters.")
        assert_problem(short, 422, "validation-failed", ["#/password"])
        assert (await api.register(password="15 characters..")).status == 201


async def test_a_member_that_is_not_the_callers_to_set_is_refused(
    api: Api, database: asyncpg.Connection
) -> None:
    for member in (
        *("id", "user_id", "role", "is_admin", "referrer_id", "referred_by", "created_at"),
        *("disabled", "email_confirmed", "uses"),
    ):
        body = {"email": "anna@example.com", "password": PASSWORD, member: True}
        answer = await api.post("/auth/register", body)
        assert answer.status == 422, member
        assert_problem(answer, 422, "validation-failed", [f"#/{member}"])
    assert await database.fetchval("SELECT count(*) FROM users") == 0


# With a referral code.


@pytest.mark.parametrize("change", [str, str.lower, str.title])
async def test_who_registers_with_a_code_has_its_owner_for_a_referrer(
    api: Api, anna: Person, change: Any
) -> None:
    code = await api.new_code(anna, code="ANNA-2026")
    registered = await api.register(referral_code=change(code))
    assert registered.status == 201
    assert registered.json()["referrer_id"] == anna.user_id
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 1


async def test_a_code_of_null_is_none(api: Api) -> None:
    registered = await api.register(referral_code=None)
    assert (registered.status, registered.json()["referrer_id"]) == (201, None)


async def unknown(api: Api, anna: Person, admin: Person) -> str:
    return "NOBODYS-CODE"


async def malformed(api: Api, anna: Person, admin: Person) -> str:
    return "no code at all!"


async def expired(api: Api, anna: Person, admin: Person) -> str:
    code = await api.new_code(anna, expires_in_days=1)
    api.clock.ahead = timedelta(days=1)
    return code


async def deleted(api: Api, anna: Person, admin: Person) -> str:
    code = await api.new_code(anna)
    await api.delete("/referral-code", by=anna)
    return code


async def replaced(api: Api, anna: Person, admin: Person) -> str:
    code = await api.new_code(anna)
    await api.put("/referral-code", {"expires_in_days": 1}, by=anna)
    return code


async def used_up(api: Api, anna: Person, admin: Person) -> str:
    code = await api.new_code(anna, max_uses=1)
    assert (await api.register(referral_code=code)).status == 201
    return code


async def of_a_disabled_owner(api: Api, anna: Person, admin: Person) -> str:
    code = await api.new_code(anna)
    await api.patch(f"/admin/users/{anna.user_id}", {"disabled": True}, by=admin)
    return code


async def of_a_disabled_owner_with_uses_left(api: Api, anna: Person, admin: Person) -> str:
    code = await api.new_code(anna, max_uses=5)
    await api.patch(f"/admin/users/{anna.user_id}", {"disabled": True}, by=admin)
    return code


async def of_an_erased_owner(api: Api, anna: Person, admin: Person) -> str:
    code = await api.new_code(anna)
    await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    return code


UNUSABLE = [unknown, malformed, expired, deleted, replaced, used_up, of_a_disabled_owner]
UNUSABLE += [of_a_disabled_owner_with_uses_left, of_an_erased_owner]


@pytest.mark.parametrize("make", UNUSABLE)
async def test_an_unusable_code_makes_no_account(
    api: Api, anna: Person, admin: Person, database: asyncpg.Connection, make: Any
) -> None:
    code = await make(api, anna, admin)
    uses = await database.fetch("SELECT uses FROM referral_codes")
    before = await database.fetchval("SELECT count(*) FROM users")
    answer = await api.register("carl@example.com", referral_code=code)
    assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
    assert await database.fetchval("SELECT count(*) FROM users") == before
    assert await database.fetch("SELECT uses FROM referral_codes") == uses
    assert_problem(await api.log_in("carl@example.com"), 401, "invalid-credentials")


@pytest.mark.parametrize("code", [None, "", "  ", "\n\u00a0\t"])
async def test_nothing_but_white_space_is_no_referral_code(api: Api, code: str | None) -> None:
    registered = await api.register(referral_code=code)
    assert (registered.status, registered.json()["referrer_id"]) == (201, None)


@pytest.mark.parametrize("typed", [" {} ", "\n{}\r\n", "\u00a0{}\u2003"])
async def test_white_space_around_a_referral_code_is_no_part_of_it(
    api: Api, anna: Person, typed: str
) -> None:
    code = await api.new_code(anna)
    registered = await api.register(referral_code=typed.format(code))
    assert (registered.status, registered.json()["referrer_id"]) == (201, anna.user_id)


async def test_an_email_that_is_taken_uses_no_code(api: Api, anna: Person) -> None:
    code = await api.new_code(anna, max_uses=1)
    assert (await api.register(anna.email, referral_code=code)).status == 409
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 0


# Erasing.


async def test_an_erased_account_is_gone_at_once(api: Api, other: Api, anna: Person) -> None:
    await api.new_code(anna)
    assert (await other.get("/users/me", by=anna)).status == 200
    erased = await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    assert (erased.status, erased.body) == (204, b"")
    for process in (api, other):
        assert_problem(await process.get("/users/me", by=anna), 401, "invalid-token")
        assert_problem(await process.log_in(anna.email), 401, "invalid-credentials")
        found = await process.get(f"/referral-code/{anna.email}")
        assert_problem(found, 404, "referral-code-not-found")
    refreshed = await api.post("/auth/refresh", {"refresh_token": anna.refresh_token})
    assert_problem(refreshed, 401, "invalid-token")


async def test_a_wrong_password_erases_nothing(api: Api, anna: Person) -> None:
    answer = await api.delete("/users/me", {"password": "wrong password"}, by=anna)
    assert_problem(answer, 401, "invalid-credentials", ["#/password"])
    assert (await api.get("/users/me", by=anna)).status == 200


async def test_an_erased_email_can_register_again_as_somebody_else(api: Api, anna: Person) -> None:
    await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    again = await api.new_person(anna.email)
    assert again.user_id != anna.user_id


async def test_an_erased_email_is_not_referred_again(api: Api, anna: Person) -> None:
    code = await api.new_code(anna)
    bert = await api.new_person("bert@example.com", referral_code=code)
    await api.delete("/users/me", {"password": PASSWORD}, by=bert)
    answer = await api.register("Bert@example.com", referral_code=code)
    assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
    assert (await api.register("Bert@example.com")).status == 201
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 1


async def test_the_referrer_keeps_the_referral_without_a_name(api: Api, anna: Person) -> None:
    code = await api.new_code(anna)
    bert = await api.new_person("bert@example.com", referral_code=code)
    await api.delete("/users/me", {"password": PASSWORD}, by=bert)
    [referral] = (await api.get("/referrals/me", by=anna)).json()["items"]
    assert (referral["id"], referral["email"]) == (bert.user_id, None)


async def test_nothing_personal_is_left_anywhere(
    api: Api, anna: Person, database: asyncpg.Connection, redis: Redis
) -> None:
    """Whatever column a table may ever get: the rows are searched as text."""
    code = await api.new_code(anna)
    browser = {"User-Agent": "Berts-Browser/1.0", "Idempotency-Key": "berts-key"}
    body = {"email": "Bert@Example.com", "password": PASSWORD, "referral_code": code}
    await api.post("/auth/register", body, headers=browser)
    signed_in = await api.post(
        "/auth/login", {"email": body["email"], "password": PASSWORD}, headers=browser
    )
    bert = signed_in.json()["access_token"]
    await api.post("/referral-code", {"expires_in_days": 1}, by=bert, headers=browser)
    await api.get("/referral-code/bert@example.com")
    assert "berts" in (await everything_stored(database, redis)).lower()

    assert (await api.delete("/users/me", {"password": PASSWORD}, by=bert)).status == 204
    async with asyncio.timeout(2):
        while await database.fetchval("SELECT count(*) FROM jobs"):
            await asyncio.sleep(0.02)
    stored = (await everything_stored(database, redis)).lower()
    assert signed_in.json()["user_id"] in stored, "the row is there"
    for personal in ("bert@", "berts-browser", "argon2"):
        assert personal not in stored.replace(anna_hash(stored), "")


def anna_hash(stored: str) -> str:
    """Return the one password hash that has to be there: Anna's."""
    start = stored.index("$argon2")
    return stored[start : stored.index(",", start)]


async def everything_stored(database: asyncpg.Connection, redis: Redis) -> str:
    """Return all rows of all tables, and all keys and values of Redis, as text."""
    tables = await database.fetch(
        "SELECT quote_ident(tablename) AS name FROM pg_tables"
        " WHERE schemaname = 'public' AND tablename NOT LIKE '%yoyo%'"
    )
    rows = []
    for table in tables:
        rows += await database.fetch(f"SELECT t::text AS row FROM {table['name']} t")
    keys = [key async for key in redis.scan_iter("*")]
    values = [str(await redis.get(key)) for key in keys]
    return "\n".join([*(row["row"] for row in rows), *map(str, keys), *values])


async def test_an_email_of_a_domain_that_only_the_operators_know_is_found_again(
    environment: dict[str, str], database: asyncpg.Connection, redis: Redis
) -> None:
    body = {"email": "Anna@corp.local", "password": PASSWORD}
    async with running(read_settings(environment)) as api:
        assert_problem(
            await api.post("/auth/register", body), 422, "validation-failed", ["#/email"]
        )
    allowed = {**environment, "EMAIL_DOMAINS_ALLOWED": "local,localhost"}
    async with running(read_settings(allowed)) as api:
        anna = await api.new_person("Anna@corp.local")
        code = await api.new_code(anna)
        for spelling in ("anna@corp.local", "ANNA@CORP.LOCAL"):
            found = await api.get(f"/referral-code/{spelling}")
            assert (found.status, found.json()["code"]) == (200, code)
        bert = await api.register("bert@localhost", referral_code=code)
        assert bert.json()["referrer_id"] == anna.user_id
    async with running(read_settings(environment)) as api:
        assert (await api.register("carl@corp.local")).status == 422
