"""Which account an identity signs in to, and its referral code and password."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.api.assertions import assert_problem
from tests.api.issuer import (
    ADA,
    EMAIL,
    GitHub,
    Issuer,
    answering,
    begin,
    come_back,
    rows,
    sign_in,
    signed_in,
)
from tests.factories import PASSWORD, Answer, Api, Person


async def test_an_unverified_email_makes_an_account_that_has_not_confirmed_it(
    api: Api, issuer: Issuer
) -> None:
    for verified in (False, None, "false", 1, ["true"]):
        issuer.claims |= {"sub": str(verified), "email_verified": verified}
        issuer.claims["email"] = f"person{len(issuer.calls)}@example.com"
        person = await signed_in(api, issuer)
        me = (await api.get("/users/me", by=person)).json()
        assert me["email_confirmed"] is (verified == 1 and verified is not False)


@pytest.mark.parametrize(
    "email",
    [
        None,
        "",
        5,
        ["a@example.com"],
        "no e-mail",
        "a@example.com\r\nBcc: b@example.com",
        "a\0@example.com",
        "\ud800@example.com",
        "a@" + "x" * 250 + ".example.com",
        "\u0131@example.com",
    ],
)
async def test_without_an_email_there_is_no_account(
    api: Api, issuer: Issuer, database: asyncpg.Connection, email: Any
) -> None:
    issuer.claims["email"] = email
    assert_problem(await sign_in(api, issuer), 403, "email-withheld")
    assert await rows(database) == (0, 0)


async def test_an_email_that_the_id_token_lacks_is_asked_for(api: Api, issuer: Issuer) -> None:
    issuer.userinfo, issuer.claims = issuer.claims, {"sub": "ada-1"}
    person = await signed_in(api, issuer)
    me = (await api.get("/users/me", by=person)).json()
    assert (me["email"], me["email_confirmed"]) == (EMAIL, True)


async def test_it_is_not_asked_for_where_it_is_there(api: Api, issuer: Issuer) -> None:
    issuer.userinfo = dict(ADA)
    await signed_in(api, issuer)
    assert "/userinfo" not in issuer.calls


@pytest.mark.parametrize("sub", ["somebody", None, 5, ["ada-1"]])
async def test_information_on_somebody_else_is_refused(api: Api, issuer: Issuer, sub: Any) -> None:
    issuer.claims, issuer.userinfo = {"sub": "ada-1"}, {**ADA, "sub": sub}
    assert_problem(await sign_in(api, issuer), 403, "sign-in-refused")


async def test_an_issuer_that_gives_no_information_gives_no_email(api: Api, issuer: Issuer) -> None:
    issuer.claims, issuer.userinfo = {"sub": "ada-1"}, {}
    issuer.instead["/userinfo"] = answering(b"{}", 403)
    assert_problem(await sign_in(api, issuer), 403, "email-withheld")


# An account with the same email address


@pytest.mark.parametrize("verified_there", [True, False])
@pytest.mark.parametrize("confirmed_here", [True, False])
async def test_an_identity_is_linked_only_if_the_issuer_has_verified_the_email(
    api: Api,
    issuer: Issuer,
    database: asyncpg.Connection,
    verified_there: bool,
    confirmed_here: bool,
) -> None:
    ada = await api.new_person(EMAIL.lower())
    if confirmed_here:
        await database.execute("UPDATE users SET email_confirmed_at = now()")
    issuer.claims["email_verified"] = verified_there
    answer = await sign_in(api, issuer)
    if verified_there:
        assert answer.json()["user_id"] == ada.user_id
        # The password of an account that never confirmed the address may be a stranger's.
        assert (await api.log_in(EMAIL)).status == (200 if confirmed_here else 401)
        issuer.claims |= {"email": "moved@example.com", "email_verified": False}
        assert (await signed_in(api, issuer)).user_id == ada.user_id
        assert await rows(database) == (1, 1)
    else:
        assert_problem(answer, 409, "identity-not-linked")
        assert await rows(database) == (1, 0)


async def test_a_disabled_account_is_not_linked(
    api: Api, issuer: Issuer, database: asyncpg.Connection
) -> None:
    await api.new_person(EMAIL)
    await database.execute("UPDATE users SET email_confirmed_at = now(), disabled_at = now()")
    assert_problem(await sign_in(api, issuer), 403, "account-disabled")
    assert await rows(database) == (1, 0)


async def test_two_identities_of_one_email_are_one_account_if_both_are_sure_of_it(
    api: Api, issuer: Issuer, github: tuple[GitHub, str]
) -> None:
    first = await signed_in(api, issuer)
    github[0].emails = [{"email": EMAIL, "primary": True, "verified": True}]
    answer = await come_back(api, await begin(api, "github"), code="x")
    assert answer.json()["user_id"] == first.user_id


# The referral code


async def test_a_referral_code_survives_the_way_there_and_back(
    api: Api, issuer: Issuer, anna: Person
) -> None:
    code = await api.new_code(anna, max_uses=1)
    ada = await signed_in(api, issuer, referral_code=code.lower())
    assert (await api.get("/users/me", by=ada)).json()["referrer_id"] == anna.user_id
    referrals = (await api.get("/referrals/me", by=anna)).json()["items"]
    assert [(one["id"], one["email"], one["code"]) for one in referrals] == [
        (ada.user_id, EMAIL, code)
    ]
    assert (await api.get(f"/referral-code/{anna.email}")).status == 404  # used up


async def test_of_parallel_sign_ins_with_one_code_each_counts_once(
    api: Api, issuer: Issuer, anna: Person
) -> None:
    code = await api.new_code(anna, max_uses=5)
    begun = [await begin(api, referral_code=code) for _ in range(8)]

    async def come(one: Any) -> Answer:
        return await come_back(api, one, code=issuer.grant(one.request), iss=issuer.url)

    answers = await asyncio.gather(*map(come, begun))
    assert {answer.status for answer in answers} == {200}
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 1


async def test_an_unusable_code_is_told_at_the_start(
    api: Api, issuer: Issuer, anna: Person, database: asyncpg.Connection
) -> None:
    code = await api.new_code(anna)
    await database.execute("UPDATE users SET disabled_at = now()")
    for unusable in (code, "NOBODYS", "x", "\u0131\u0131\u0131\u0131", "a\0bc"):
        answer = await api.get(
            "/auth/providers/corp/start", params={"referral_code": unusable}, allow_redirects=False
        )
        assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
    assert await database.fetchval("SELECT count(*) FROM sign_ins") == 0


@pytest.mark.parametrize("nothing", ["", " ", "\u00a0\n"])
async def test_nothing_but_white_space_is_no_code(api: Api, issuer: Issuer, nothing: str) -> None:
    ada = await signed_in(api, issuer, referral_code=nothing)
    assert (await api.get("/users/me", by=ada)).json()["referrer_id"] is None


async def test_a_code_is_read_there_as_everywhere(api: Api, issuer: Issuer, anna: Person) -> None:
    await api.new_code(anna, code="TOOL-101")
    ada = await signed_in(api, issuer, referral_code=" t00l-LoI\n")
    assert (await api.get("/users/me", by=ada)).json()["referrer_id"] == anna.user_id


async def test_a_code_that_ends_on_the_way_makes_no_account(
    api: Api, issuer: Issuer, anna: Person, database: asyncpg.Connection
) -> None:
    code = await api.new_code(anna)
    begun = await begin(api, referral_code=code)
    await api.delete("/referral-code", by=anna)
    answer = await come_back(api, begun, code=issuer.grant(begun.request), iss=issuer.url)
    assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
    assert await rows(database) == (1, 0)
    assert (await sign_in(api, issuer)).status == 200


async def test_a_code_counts_only_for_who_is_new(api: Api, issuer: Issuer, anna: Person) -> None:
    await signed_in(api, issuer)
    code = await api.new_code(anna)
    ada = await signed_in(api, issuer, referral_code=code)
    assert (await api.get("/users/me", by=ada)).json()["referrer_id"] is None
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 0


# Accounts without a password


async def test_one_without_a_password_is_erased_just_after_signing_in(
    api: Api, issuer: Issuer, anna: Person, database: asyncpg.Connection
) -> None:
    code = await api.new_code(anna)
    ada = await signed_in(api, issuer, referral_code=code)
    api.clock.ahead = timedelta(minutes=10, seconds=1)
    tokens = await api.post("/auth/refresh", {"refresh_token": ada.refresh_token})
    old = tokens.json()["access_token"]
    assert_problem(await api.delete("/users/me", {}, by=old), 401, "sign-in-too-old")
    assert_problem(
        await api.delete("/users/me", {"password": PASSWORD}, by=old), 401, "sign-in-too-old"
    )
    issuer.forge = lambda claims: issuer.keys[0].sign({**claims, "exp": claims["exp"] + 3600})
    ada = await signed_in(api, issuer)
    assert (await api.delete("/users/me", by=ada)).status == 204
    assert await rows(database) == (2, 0)
    assert (await api.get("/users/me", by=ada)).status == 401

    # Whoever comes back is somebody new, and no new referral.
    answer = await sign_in(api, issuer, referral_code=code)
    assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
    assert (await signed_in(api, issuer)).user_id != ada.user_id


async def test_another_application_cannot_erase_one_without_a_password(
    api: Api, issuer: Issuer, database: asyncpg.Connection
) -> None:
    ada = await signed_in(api, issuer)
    await database.execute("UPDATE sessions SET client_id = 'an application'")
    assert_problem(await api.delete("/users/me", {}, by=ada), 401, "sign-in-too-old")


async def test_one_with_a_password_still_needs_it(api: Api, anna: Person) -> None:
    answer = await api.delete("/users/me", {}, by=anna)
    assert_problem(answer, 422, "validation-failed", ["#/password"])
    answer = await api.delete("/users/me", {"password": "wrong"}, by=anna)
    assert_problem(answer, 401, "invalid-credentials", ["#/password"])


async def test_one_without_a_password_cannot_change_it(api: Api, issuer: Issuer) -> None:
    ada = await signed_in(api, issuer)
    answer = await api.post(
        "/auth/password/change", {"current_password": "", "new_password": PASSWORD}, by=ada
    )
    assert_problem(answer, 401, "invalid-credentials", ["#/current_password"])
