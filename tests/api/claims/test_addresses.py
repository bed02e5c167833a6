"""Addresses that change hands or spelling, and links that are followed twice."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain.mails import TOKEN_LIVES
from tests.api.claims.conftest import ATTACKERS, VICTIMS, new_person, passwords, register, rows
from tests.api.claims.test_referral_codes import erased
from tests.api.mailing import ANNA, NEW_PASSWORD, Postman, assert_unusable, confirm, reset
from tests.factories import PASSWORD, Answer, Api, Person


async def test_claims_of_an_address_end_when_an_account_moves_to_it(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    bert = await new_person(strict, postman, "bert@example.com")
    await register(strict, password=ATTACKERS)
    change = {"new_email": ANNA, "password": PASSWORD}
    assert (await strict.post("/auth/email/change", change, by=bert)).status == 202
    attackers, own = await postman.tokens()
    assert (await confirm(strict, own)).status == 204
    assert_unusable(await confirm(strict, attackers))
    assert await rows(database) == {"users": 1, "claims": 0, "mail_tokens": 0}
    assert await passwords(strict) == {ATTACKERS: 401, VICTIMS: 401}


async def test_a_claim_comes_too_late_where_the_address_was_confirmed_otherwise(
    lax: Api, strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    """By a new password of an account of before, or as an admin's on the command line."""
    await lax.register(ANNA, password=ATTACKERS)
    for email in (ANNA, "root@example.com"):
        await register(strict, email, ATTACKERS)
    *_, of_anna, of_root = await postman.tokens()
    await strict.app[SERVICES].users.make_admin("root@example.com", VICTIMS)
    strict.clock.ahead += timedelta(minutes=1)
    await strict.post("/auth/password/forgot", {"email": ANNA})
    [token] = await postman.tokens()
    assert (await reset(strict, token, VICTIMS)).status == 204
    for claimed, email in ((of_anna, ANNA), (of_root, "root@example.com")):
        assert_unusable(await confirm(strict, claimed))
        assert await passwords(strict, email) == {ATTACKERS: 401, VICTIMS: 200}


async def test_claims_of_an_address_are_exported_with_its_account(
    strict: Api, postman: Postman
) -> None:
    anna = await new_person(strict, postman, ANNA)
    await register(strict, password=ATTACKERS)
    told = await strict.app[SERVICES].personal_data.export(UUID(anna.user_id))
    [claim] = told["unconfirmed_registrations"]
    assert claim["email"] == ANNA
    assert set(claim) == {"email", "issuer", "created_at", "expires_at"}, "no password hash"


async def test_claims_of_an_address_are_erased_with_its_account(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    anna = await new_person(strict, postman, ANNA)
    await register(strict, password=ATTACKERS)
    await erased(strict, anna, database)
    assert await rows(database) == {"users": 1, "claims": 0, "mail_tokens": 0}
    assert await postman.deliver() == []
    assert await database.fetchval("SELECT count(*) FROM confirmations") == 0


async def test_an_erased_address_is_confirmed_anew(strict: Api, postman: Postman) -> None:
    anna = await new_person(strict, postman, ANNA)
    assert (await strict.delete("/users/me", {"password": PASSWORD}, by=anna)).status == 204
    again = await new_person(strict, postman, ANNA)
    assert again.user_id != anna.user_id


# --- The same link twice.


async def change_to(api: Api, postman: Postman, by: Person, email: str) -> str:
    """Ask for another address; return the token that was mailed there."""
    body = {"new_email": email, "password": PASSWORD}
    assert (await api.post("/auth/email/change", body, by=by)).status == 202
    [token] = await postman.tokens()
    return token


@pytest.mark.parametrize("of", ["a claim", "an account", "a change"])
async def test_of_64_who_send_a_confirmation_at_once_all_are_told_that_it_is_confirmed(
    lax: Api, strict: Api, postman: Postman, database: asyncpg.Connection, of: str
) -> None:
    """Without DELETE … RETURNING in TAKE it would be done more than once."""
    if of == "a claim":
        await register(strict)
        [token] = await postman.tokens()
    else:
        anna = await lax.new_person(ANNA)
        [token] = await postman.tokens()
        if of == "a change":
            token = await change_to(lax, postman, anna, "anna@example.org")
    answers = await asyncio.gather(*(confirm(strict, token) for _ in range(64)))
    assert {answer.status for answer in answers} == {204}
    assert await rows(database) == {"users": 1, "claims": 0, "mail_tokens": 0}
    assert await database.fetchval("SELECT count(*) FROM confirmations") == 1
    confirmed = await database.fetchval(
        "SELECT count(*) FROM security_events WHERE event = 'email.confirmed'"
    )
    assert confirmed == (of != "a change")
    told = await postman.deliver()
    assert len(told) == (of == "a change")


async def test_a_used_confirmation_says_so_as_long_as_the_account_has_the_address(
    strict: Api, postman: Postman
) -> None:
    await register(strict)
    [token] = await postman.tokens()
    assert (await confirm(strict, token)).status == 204
    strict.clock.ahead += timedelta(days=400)
    assert (await confirm(strict, token)).status == 204
    await strict.post("/auth/password/forgot", {"email": ANNA})
    [to_reset] = await postman.tokens()
    assert (await reset(strict, to_reset)).status == 204
    assert (await confirm(strict, token)).status == 204
    # A token for a new password stays good once.
    assert_unusable(await reset(strict, to_reset))
    anna = await strict.log_in(ANNA, NEW_PASSWORD)
    body = {"new_email": "anna@example.org", "password": NEW_PASSWORD}
    strict.clock.ahead += timedelta(hours=1)
    anna = await strict.log_in(ANNA, NEW_PASSWORD)
    await strict.post("/auth/email/change", body, by=anna.json()["access_token"])
    *_, change = await postman.tokens()
    assert (await confirm(strict, change)).status == 204
    assert (await confirm(strict, change)).status == 204
    assert_unusable(await confirm(strict, token))


async def test_back_at_the_first_address_its_first_confirmation_is_of_no_more_use(
    strict: Api, postman: Postman
) -> None:
    await register(strict)
    [first] = await postman.tokens()
    assert (await confirm(strict, first)).status == 204
    for old, email in ((ANNA, "anna@example.org"), ("anna@example.org", ANNA)):
        strict.clock.ahead += timedelta(hours=1)  # there have been mails enough
        anna = await strict.signed_in(old)
        change = await change_to(strict, postman, anna, email)
        assert (await confirm(strict, change)).status == 204
        await postman.deliver()
        assert_unusable(await confirm(strict, first))


async def test_a_used_confirmation_ends_with_the_address_where_the_release_before_changes_it(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    """It knows of no confirmations that it would have to delete."""
    await register(strict)
    [token] = await postman.tokens()
    assert (await confirm(strict, token)).status == 204
    await database.execute(
        "UPDATE users SET email = 'a@x.org', email_key = 'a@x.org', email_confirmed_at = now()"
    )
    assert_unusable(await confirm(strict, token))


async def test_a_used_confirmation_ends_with_the_account(strict: Api, postman: Postman) -> None:
    await register(strict)
    [token] = await postman.tokens()
    assert (await confirm(strict, token)).status == 204
    anna = await strict.signed_in(ANNA)
    assert (await strict.delete("/users/me", {"password": PASSWORD}, by=anna)).status == 204
    assert_unusable(await confirm(strict, token))
    await register(strict)
    [token_of_another] = await postman.tokens()
    assert (await confirm(strict, token_of_another)).status == 204
    assert_unusable(await confirm(strict, token))


async def test_a_token_that_was_refused_is_refused_again(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    await register(strict)
    [token] = await postman.tokens()
    strict.clock.ahead = TOKEN_LIVES
    for _ in range(2):
        assert_unusable(await confirm(strict, token))
    assert await database.fetchval("SELECT count(*) FROM confirmations") == 0


# --- White space, and null.


@pytest.mark.parametrize(("before", "after"), [(" ", "\n"), ("\t", " \r\n"), ("\u00a0", "\u3000")])
async def test_white_space_around_emails_and_tokens_does_not_count(
    strict: Api, postman: Postman, database: asyncpg.Connection, before: str, after: str
) -> None:
    def spaced(text: str) -> str:
        return f"{before}{text}{after}"

    await register(strict, spaced(ANNA))
    await strict.post("/auth/email/resend", {"email": spaced(ANNA)})
    _, token = await postman.tokens()
    assert (await confirm(strict, spaced(token))).status == 204
    anna = await strict.signed_in(spaced(ANNA))
    assert (await strict.get("/users/me", by=anna)).json()["email"] == ANNA
    strict.clock.ahead += timedelta(hours=1)
    await strict.post("/auth/password/forgot", {"email": spaced(ANNA)})
    [token] = await postman.tokens()
    answer = await reset(strict, spaced(token))
    assert answer.status == 204
    body = {"email": ANNA, "password": spaced(NEW_PASSWORD)}
    assert (await strict.post("/auth/login", body)).status == 401  # of a password it does


async def test_null_for_a_member_that_may_be_absent_is_absent(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    anna = await new_person(strict, postman, ANNA, referral_code=None)
    await database.execute("UPDATE users SET password_hash = NULL")
    body = {"new_email": "anna@example.org", "password": None}
    assert (await strict.post("/auth/email/change", body, by=anna)).status == 202
    assert (await strict.delete("/users/me", {"password": None}, by=anna)).status == 204


async def test_an_address_in_a_path_or_a_query_is_trimmed_too(
    lax: Api, admin_of_lax: Person
) -> None:
    anna = await lax.new_person(ANNA)
    code = await lax.new_code(anna)
    found = await lax.get(f"/referral-code/%20{ANNA}%0A")
    assert found.json()["code"] == code
    listed = await lax.get("/admin/users", by=admin_of_lax, params={"email": f" {ANNA}\n"})
    assert [user["id"] for user in listed.json()["items"]] == [anna.user_id]


def told(answer: Answer) -> Any:
    """Return what of an answer must not differ between two."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    del headers["date"], headers["x-request-id"]
    return answer.status, headers, answer.body


async def test_registering_does_the_same_for_any_email_and_looks_at_no_account(
    strict: Api, postman: Postman, database: asyncpg.Connection, hashes: list[object]
) -> None:
    """The same answer, one hash, one claim and one job, while nobody can read an account."""
    await new_person(strict, postman, "confirmed@example.com")
    await register(strict, "claimed@example.com")
    await database.execute("DELETE FROM jobs; DELETE FROM claims")
    hashes.clear()
    answers = []
    for name in ("confirmed", "claimed", "new"):
        async with database.transaction(), asyncio.timeout(2):
            await database.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            answers.append(await strict.register(f"{name}@example.com"))
        [claim] = await database.fetch("DELETE FROM claims RETURNING claim_id, email_key")
        assert claim["email_key"] == f"{name}@example.com"
        [job] = await database.fetch(
            "DELETE FROM jobs RETURNING kind, payload ->> 'claim_id' AS claim_id"
        )
        assert (job["kind"], job["claim_id"]) == ("mail", str(claim["claim_id"]))
    assert len({repr(told(answer)) for answer in answers}) == 1
    assert len(hashes) == 3
