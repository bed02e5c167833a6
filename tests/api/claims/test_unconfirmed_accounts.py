"""Accounts that nobody has confirmed: of before the mode was switched, or of the release before."""

import asyncio

import asyncpg

from service.api.http.app_keys import SERVICES
from tests.api.assertions import assert_problem
from tests.api.claims.conftest import ATTACKERS, VICTIMS, passwords, register, rows
from tests.api.mailing import ANNA, Postman, assert_unusable, confirm, reset
from tests.factories import PASSWORD, Api, Person


async def test_an_account_of_before_the_switch_cannot_be_signed_in_to_unconfirmed(
    lax: Api, strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    anna = await lax.new_person(ANNA)
    assert_problem(await strict.log_in(ANNA), 401, "invalid-credentials")
    assert_problem(await strict.log_in(ANNA, "wrong"), 401, "invalid-credentials")
    [token] = await postman.tokens()
    assert (await confirm(strict, token)).status == 204
    assert (await strict.signed_in(ANNA)).user_id == anna.user_id


async def test_admins_see_that_an_account_of_before_the_switch_awaits_confirmation(
    lax: Api, strict: Api, admin_of_lax: Person
) -> None:
    anna = await lax.new_person(ANNA)
    own = f"/admin/users/{anna.user_id}"
    assert not (await lax.get(own, by=admin_of_lax)).json()["awaits_confirmation"]
    for path in (own, "/admin/users", f"/admin/users?email={ANNA}"):
        shown = (await strict.get(path, by=admin_of_lax)).json()
        [shown] = [user for user in shown.get("items", [shown]) if user["email"] == ANNA]
        assert shown["awaits_confirmation"]


async def test_the_owner_who_registers_gets_the_account_of_a_squatter_without_what_is_on_it(
    lax: Api, strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    thief = await lax.new_person("thief@example.com")
    squatter = await lax.new_person(ANNA, referral_code=await lax.new_code(thief))
    await lax.new_code(squatter, code="CELEBRITY")
    await database.execute(
        "INSERT INTO identities SELECT 'https://issuer.example', 'mallory', user_id, created_at"
        " FROM users WHERE email = $1",
        ANNA,
    )
    [_, squatters] = await postman.tokens()

    await register(strict, password=VICTIMS)
    [own] = await postman.tokens()
    assert (await strict.get("/users/me", by=squatter)).status == 200  # nothing has happened yet
    assert (await confirm(strict, own)).status == 204
    assert (await strict.get("/users/me", by=squatter)).status == 401
    assert_problem(await strict.log_in(ANNA), 401, "invalid-credentials")
    assert_unusable(await confirm(strict, squatters))
    assert (await strict.get(f"/referral-code/{ANNA}")).status == 404
    assert await database.fetchval("SELECT count(*) FROM identities") == 0
    assert (await lax.get("/referrals/me", by=thief)).json()["items"] == []
    tokens = (await strict.log_in(ANNA, VICTIMS)).json()
    assert tokens["user_id"] == squatter.user_id
    activity = (await strict.get("/users/me/activity", by=tokens["access_token"])).json()["items"]
    assert [item["event"] for item in activity[:4]] == [
        "sign_in.succeeded",
        "sign_in.failed",
        "email.confirmed",
        "account.reclaimed",
    ]


async def test_whichever_is_confirmed_first_the_account_or_a_claim_ends_the_other(
    lax: Api, strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    await lax.register(ANNA, password=ATTACKERS)
    await register(strict, password=VICTIMS)
    of_account, of_claim = await postman.tokens()
    assert (await confirm(strict, of_account)).status == 204
    assert_unusable(await confirm(strict, of_claim))
    assert await passwords(strict) == {ATTACKERS: 200, VICTIMS: 401}
    assert await rows(database) == {"users": 1, "claims": 0, "mail_tokens": 0}


async def test_an_account_and_a_claim_confirmed_at_once_are_one_account_of_one_password(
    lax: Api, strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    await lax.register(ANNA, password=ATTACKERS)
    await register(strict, password=VICTIMS)
    tokens = await postman.tokens()
    answers = await asyncio.gather(*(confirm(strict, token) for token in tokens))
    assert sorted(answer.status for answer in answers) == [204, 422]
    won = answers[0].status == 204
    assert await passwords(strict) == {ATTACKERS: 200 if won else 401, VICTIMS: 401 if won else 200}
    assert await rows(database) == {"users": 1, "claims": 0, "mail_tokens": 0}


async def test_a_resend_reaches_the_unconfirmed_account_and_the_claims_beside_it(
    lax: Api, strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    """The account's holder need not confirm a stranger's claim, nor the other way round."""
    await lax.register(ANNA, password=VICTIMS)
    await register(strict, password=ATTACKERS)
    await database.execute("DELETE FROM jobs")
    await strict.post("/auth/email/resend", {"email": ANNA})
    mails = await postman.deliver()
    assert len(mails) == 2
    assert all("more than once" in mail.text for mail in mails)


async def test_the_own_code_of_an_unconfirmed_account_is_no_referral_to_oneself(
    lax: Api, strict: Api
) -> None:
    """Otherwise a claim could name the code of the account that it becomes."""
    anna = await lax.new_person(ANNA)
    code = await lax.new_code(anna)
    refused = await strict.register(ANNA, referral_code=code)
    assert_problem(refused, 422, "referral-code-unusable", ["#/referral_code"])


async def test_a_disabled_account_stays_disabled_whoever_claims_its_email(
    lax: Api, strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    await lax.register(ANNA)
    await register(strict, password=VICTIMS)
    *_, token = await postman.tokens()
    await database.execute("UPDATE users SET disabled_at = now()")
    assert (await confirm(strict, token)).status == 204
    assert_problem(await strict.log_in(ANNA, VICTIMS), 403, "account-disabled")


async def test_a_mail_that_the_release_before_has_planned_lets_nobody_but_the_reader_in(
    lax: Api, strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    await lax.register(ANNA, password=ATTACKERS)
    await database.execute(
        """UPDATE jobs SET payload = payload || '{"mail": "registered_again"}'"""
    )
    [token] = await postman.tokens()
    assert_unusable(await confirm(strict, token))
    assert (await reset(strict, token, VICTIMS)).status == 204
    assert await passwords(strict) == {ATTACKERS: 401, VICTIMS: 200}


async def test_an_admin_made_on_the_command_line_signs_in_at_once(strict: Api) -> None:
    await strict.app[SERVICES].users.make_admin("root@example.com", PASSWORD)
    root = await strict.signed_in("root@example.com")
    assert (await strict.get("/users/me", by=root)).json()["email_confirmed"]


async def test_a_claim_becomes_the_account_after_the_mode_was_switched_off(
    lax: Api, strict: Api, postman: Postman
) -> None:
    await register(strict, password=VICTIMS)
    [token] = await postman.tokens()
    assert (await lax.register(ANNA, password=ATTACKERS)).status == 201
    assert (await confirm(lax, token)).status == 204
    assert await passwords(lax) == {ATTACKERS: 401, VICTIMS: 200}
