"""Signing in with other issuers where email addresses are confirmed first."""

import asyncio

import asyncpg
import pytest

from tests.api.assertions import assert_problem
from tests.api.issuer import EMAIL, Issuer, begin, come_back, rows, sign_in, signed_in
from tests.api.mailing import Postman, assert_unusable, confirm
from tests.factories import Api


async def test_an_email_that_the_issuer_is_not_sure_of_is_a_claim_until_it_is_confirmed(
    strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection
) -> None:
    """Neither a newcomer nor a returning user gets in, and there is no account yet."""
    issuer.claims["email_verified"] = False
    for _ in range(2):
        assert_problem(await sign_in(strict, issuer), 403, "email-not-confirmed")
    assert await rows(database) == (0, 0)
    assert await database.fetchval("SELECT count(*) FROM sessions") == 0
    first, second = await postman.tokens()
    assert (await confirm(strict, second)).status == 204
    assert_unusable(await confirm(strict, first))
    assert await rows(database) == (1, 1)
    ada = await signed_in(strict, issuer)
    me = (await strict.get("/users/me", by=ada)).json()
    assert (me["email"], me["email_confirmed"]) == (EMAIL, True)
    assert await database.fetchval("SELECT password_hash FROM users") is None


@pytest.mark.parametrize("verified", [True, False])
async def test_an_email_that_the_issuer_is_not_sure_of_tells_nobody_whether_it_is_known(
    strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection, verified: bool
) -> None:
    await strict.register(EMAIL)
    [token] = await postman.tokens()
    assert (await confirm(strict, token)).status == 204
    issuer.claims["email_verified"] = verified
    answer = await sign_in(strict, issuer)
    if verified:
        assert answer.status == 200  # both sides are sure
        return
    assert_problem(answer, 403, "email-not-confirmed")
    assert await rows(database) == (1, 0)
    [note] = await postman.deliver()
    assert "already have an account" in note.message["Subject"]
    assert await database.fetchval("SELECT count(*) FROM claims") == 0


async def test_without_an_email_there_is_no_claim(
    strict: Api, issuer: Issuer, database: asyncpg.Connection
) -> None:
    issuer.claims |= {"email": None, "email_verified": False}
    assert_problem(await sign_in(strict, issuer), 403, "email-withheld")
    assert await database.fetchval("SELECT count(*) FROM claims") == 0


async def test_a_verified_sign_in_makes_the_account_while_claims_wait_which_end(
    strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection
) -> None:
    await strict.register(EMAIL, password="the password of a stranger")
    [token] = await postman.tokens()
    ada = await signed_in(strict, issuer)
    assert_unusable(await confirm(strict, token))
    assert (await strict.log_in(EMAIL, "the password of a stranger")).status == 401
    assert (await strict.get("/users/me", by=ada)).json()["email_confirmed"]
    await strict.register(EMAIL)
    [note] = await postman.deliver()
    assert "already have an account" in note.message["Subject"]


async def test_a_verified_sign_in_beside_the_confirmation_of_a_claim_makes_one_account(
    strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection
) -> None:
    await strict.register(EMAIL)
    [token] = await postman.tokens()
    begun = await begin(strict)
    code = issuer.grant(begun.request)
    confirmed, signed = await asyncio.gather(
        confirm(strict, token), come_back(strict, begun, code=code, iss=issuer.url)
    )
    # Whichever is second: a sign-in is linked to what is confirmed, a claim comes too late.
    assert (confirmed.status, signed.status) in {(204, 200), (422, 200)}
    assert await rows(database) == (1, 1)


async def test_the_claim_of_an_identity_has_its_referral_with_the_confirmation(
    strict: Api, postman: Postman, issuer: Issuer
) -> None:
    await strict.register("bert@example.com")
    [token] = await postman.tokens()
    await confirm(strict, token)
    bert = await strict.signed_in("bert@example.com")
    code = await strict.new_code(bert, max_uses=1)
    issuer.claims["email_verified"] = False
    answer = await sign_in(strict, issuer, referral_code=code)
    assert_problem(answer, 403, "email-not-confirmed")
    assert (await strict.get("/referral-code", by=bert)).json()["uses"] == 0
    [token] = await postman.tokens()
    assert (await confirm(strict, token)).status == 204
    ada = await signed_in(strict, issuer)
    assert (await strict.get("/users/me", by=ada)).json()["referrer_id"] == bert.user_id


async def test_an_identity_becomes_no_second_account_by_a_claim_with_another_email(
    strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection
) -> None:
    issuer.claims["email_verified"] = False
    await sign_in(strict, issuer)
    issuer.claims["email"] = "ada@example.org"
    await sign_in(strict, issuer)
    tokens = await postman.tokens()
    answers = await asyncio.gather(*(confirm(strict, token) for token in tokens))
    assert sorted(answer.status for answer in answers) == [204, 422]
    assert await rows(database) == (1, 1)


async def test_an_identity_of_an_account_that_never_confirmed_begins_no_session(
    api: Api, strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection
) -> None:
    """The account was made before the mode was switched on."""
    issuer.claims["email_verified"] = False
    await signed_in(api, issuer)
    assert_problem(await sign_in(strict, issuer), 403, "email-not-confirmed")
    assert await rows(database) == (1, 1)
    assert await database.fetchval("SELECT count(*) FROM claims") == 0
