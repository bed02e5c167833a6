"""Identities of an account: linked by a sign-in, listed, cut off, and gone with their address."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from service.settings.settings import Settings, read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.api.issuer import EMAIL, GitHub, Issuer, begin, come_back, sign_in, signed_in
from tests.api.mailing import NEW_PASSWORD, confirm, forgotten, mailed, reset, token_in
from tests.factories import PASSWORD, Answer, Api, Person, running
from tests.oauth import new_application, refusal
from tests.stand_ins.smtp import SmtpServer

ADA = "Ada@example.com"  # as mail servers see it
GITHUB_EMAILS = [{"email": EMAIL, "primary": True, "verified": True}]
NOBODY = "01890000-0000-7000-8000-000000000000"

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def settings(mail_environment: dict[str, str], provider_environment: dict[str, str]) -> Settings:
    return read_settings({**mail_environment, **provider_environment})


@pytest.fixture
async def api(
    settings: Settings, database: asyncpg.Connection, redis: object
) -> AsyncIterator[Api]:
    async with running(settings) as api:
        yield api


async def confirmed(api: Api, smtp: SmtpServer, email: str = ADA, **members: Any) -> Person:
    """Register and confirm the address."""
    person = await api.new_person(email, **members)
    await confirm(api, token_in((await mailed(smtp, email, "Confirm"))[0]))
    return person


async def with_github(api: Api) -> Answer:
    return await come_back(api, await begin(api, "github"), code="x")


async def identities(api: Api, person: Person) -> list[dict[str, Any]]:
    answer = await api.get("/users/me/identities", by=person)
    assert answer.status == 200, answer.body
    assert answer.json()["next_cursor"] is None
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def events(api: Api, person: Person) -> list[str]:
    page = (await api.get("/users/me/activity", by=person)).json()
    return [item["event"] for item in page["items"]]


async def unlink(api: Api, person: Person, identity_id: str) -> Answer:
    return await api.delete(f"/users/me/identities/{identity_id}", by=person)


# --- Listing.


async def test_the_owner_sees_them_newest_first(
    api: Api, issuer: Issuer, github: tuple[GitHub, str]
) -> None:
    await signed_in(api, issuer)
    github[0].emails = GITHUB_EMAILS
    tokens = (await with_github(api)).json()
    ada = Person(tokens["user_id"], EMAIL, tokens["access_token"], tokens["refresh_token"])
    newer, older = await identities(api, ada)
    assert set(newer) == {"id", "provider", "issuer", "email", "created_at"}
    assert (newer["provider"], newer["issuer"], newer["email"]) == ("github", github[1], EMAIL)
    assert (older["provider"], older["issuer"], older["email"]) == ("corp", issuer.url, EMAIL)
    bert = await api.new_person("bert@example.com")
    assert await identities(api, bert) == []


async def test_one_of_an_issuer_that_is_not_set_up_any_more_is_shown(
    api: Api, issuer: Issuer, settings: Settings
) -> None:
    ada = await signed_in(api, issuer)
    async with running(replace(settings, providers=())) as other:
        [shown] = await identities(other, ada)
    assert (shown["provider"], shown["issuer"]) == (None, issuer.url)


async def test_one_of_the_release_before_is_shown(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """It names neither an id nor the email address."""
    await database.execute(
        "INSERT INTO identities (issuer, subject, user_id, created_at)"
        " SELECT 'https://issuer.example', 'anna', user_id, created_at FROM users"
    )
    [shown] = await identities(api, anna)
    assert shown["email"] is None
    assert (await unlink(api, anna, shown["id"])).status == 204


# --- Linking.


async def test_linking_tells_the_owner_and_ends_the_other_sessions(
    api: Api, smtp: SmtpServer, issuer: Issuer
) -> None:
    ada = await confirmed(api, smtp)
    application = await new_application(api)
    code = await application.code_of(ada)
    linked = await signed_in(api, issuer)
    assert linked.user_id == ada.user_id
    assert (await api.get("/users/me", by=ada)).status == 401
    refreshed = await api.post("/auth/refresh", {"refresh_token": ada.refresh_token})
    assert refreshed.status == 401
    assert refusal(await application.redeem(code)) == (400, "invalid_grant")
    [mail] = await mailed(smtp, ADA, "A new way to sign in to your referrals account")
    assert "127.0.0.1" in mail.text  # the issuer
    assert (await events(api, linked))[:3] == [
        "sign_in.succeeded",
        "identity.linked",
        "session.ended",
    ]
    # Coming back links nothing, and ends nothing.
    again = await signed_in(api, issuer)
    assert (await events(api, again))[:2] == ["sign_in.succeeded", "sign_in.succeeded"]
    assert (await api.get("/users/me", by=linked)).status == 200


async def test_signing_up_is_no_link(
    api: Api, smtp: SmtpServer, issuer: Issuer, database: asyncpg.Connection
) -> None:
    ada = await signed_in(api, issuer)
    await no_jobs(database)
    assert smtp.mails == []
    assert await events(api, ada) == ["sign_in.succeeded", "account.registered"]


async def test_of_many_callbacks_at_once_one_links(
    api: Api, smtp: SmtpServer, issuer: Issuer, database: asyncpg.Connection
) -> None:
    await confirmed(api, smtp)
    begun = [await begin(api) for _ in range(6)]
    answers = await asyncio.gather(
        *(come_back(api, one, code=issuer.grant(one.request), iss=issuer.url) for one in begun)
    )
    assert {answer.status for answer in answers} == {200}
    for answer in answers:
        assert (await api.get("/users/me", by=answer.json()["access_token"])).status == 200
    await no_jobs(database)
    assert len(await mailed(smtp, ADA, "A new way to sign in")) == 1


# --- An account that never confirmed its address.


@pytest.mark.parametrize("mode", ["off", "required"])
async def test_a_verified_issuer_takes_an_account_from_who_has_never_confirmed_it(
    settings: Settings,
    smtp: SmtpServer,
    issuer: Issuer,
    database: asyncpg.Connection,
    redis: object,
    mode: str,
) -> None:
    async with running(settings) as api:
        referrer = await api.new_person("referrer@example.com")
        code = await api.new_code(referrer)
        squatter = await api.new_person(ADA, referral_code=code)
        await api.new_code(squatter)
        assert (await api.get(f"/referral-code/{ADA}")).status == 200
    async with running(replace(settings, confirmation_required=mode == "required")) as api:
        ada = await signed_in(api, issuer)
        assert ada.user_id == squatter.user_id
        assert (await api.get("/users/me", by=squatter)).status == 401
        assert (await api.log_in(ADA)).status == 401
        assert (await api.get(f"/referral-code/{ADA}")).status == 404
        me = (await api.get("/users/me", by=ada)).json()
        assert (me["email_confirmed"], me["referrer_id"]) == (True, None)
        assert [one["provider"] for one in await identities(api, ada)] == ["corp"]
        assert (await events(api, ada))[:5] == [
            "sign_in.failed",
            "sign_in.succeeded",
            "identity.linked",
            "account.reclaimed",
            "session.ended",
        ]
        assert await mailed(smtp, ADA, "A new way to sign in")
        assert (await signed_in(api, issuer)).user_id == ada.user_id


async def test_so_it_does_from_an_issuer_that_has_not_verified_it(
    api: Api, issuer: Issuer, github: tuple[GitHub, str]
) -> None:
    issuer.claims["email_verified"] = False
    squatter = await signed_in(api, issuer)
    github[0].emails = GITHUB_EMAILS
    answer = await with_github(api)
    assert answer.json()["user_id"] == squatter.user_id
    assert (await api.get("/users/me", by=squatter)).status == 401
    assert_problem(await sign_in(api, issuer), 409, "identity-not-linked")


async def test_a_disabled_one_stays_as_it_is(
    api: Api, issuer: Issuer, database: asyncpg.Connection
) -> None:
    await api.new_person(ADA)
    await database.execute("UPDATE users SET disabled_at = now()")
    assert_problem(await sign_in(api, issuer), 403, "account-disabled")
    assert await database.fetchval("SELECT password_hash FROM users") is not None
    assert await database.fetchval("SELECT count(*) FROM identities") == 0


async def test_beside_a_confirmation_the_issuer_signs_in_all_the_same(
    api: Api, smtp: SmtpServer, issuer: Issuer, database: asyncpg.Connection
) -> None:
    """Whoever confirms reads the mail: then the password is not a stranger's."""
    await api.new_person(ADA)
    token = token_in((await mailed(smtp, ADA, "Confirm"))[0])
    begun = await begin(api)
    answer, confirmation = await asyncio.gather(
        come_back(api, begun, code=issuer.grant(begun.request), iss=issuer.url), confirm(api, token)
    )
    assert answer.status == 200
    password = await database.fetchval("SELECT password_hash FROM users")
    assert (password is not None) == (confirmation.status == 204)
    assert await database.fetchval("SELECT email_confirmed_at FROM users") is not None


# --- Cutting off.


async def test_one_is_cut_off_and_the_other_sessions_end(
    api: Api, smtp: SmtpServer, issuer: Issuer
) -> None:
    await confirmed(api, smtp)
    await signed_in(api, issuer)
    ada, elsewhere = await api.signed_in(ADA), await api.signed_in(ADA)
    [identity] = await identities(api, ada)
    assert (await unlink(api, ada, identity["id"])).status == 204
    assert await identities(api, ada) == []
    assert (await api.get("/users/me", by=elsewhere)).status == 401
    assert (await events(api, ada))[:2] == ["identity.unlinked", "session.ended"]
    assert_problem(await unlink(api, ada, identity["id"]), 404, "identity-not-found")


async def test_that_of_another_is_as_if_it_were_not_there(
    api: Api, issuer: Issuer, anna: Person
) -> None:
    ada = await signed_in(api, issuer)
    [identity] = await identities(api, ada)
    for identity_id in (identity["id"], NOBODY, "x", "%00"):
        assert_problem(await unlink(api, anna, identity_id), 404, "identity-not-found")
    assert await identities(api, ada) == [identity]


async def test_the_last_way_in_stays(
    api: Api, smtp: SmtpServer, issuer: Issuer, github: tuple[GitHub, str], settings: Settings
) -> None:
    await signed_in(api, issuer)
    github[0].emails = GITHUB_EMAILS
    await with_github(api)
    ada = await signed_in(api, issuer)
    with_hub, with_corp = await identities(api, ada)
    # An issuer that is not set up any more signs nobody in.
    [hub] = [one for one in settings.providers if one.name == "github"]
    async with running(replace(settings, providers=(hub,))) as other:
        assert_problem(await unlink(other, ada, with_hub["id"]), 409, "last-way-in")
    assert (await unlink(api, ada, with_corp["id"])).status == 204
    assert_problem(await unlink(api, ada, with_hub["id"]), 409, "last-way-in")
    assert (await reset(api, await forgotten(api, smtp, ADA))).status == 204
    ada = replace(ada, access_token=(await api.log_in(ADA, NEW_PASSWORD)).json()["access_token"])
    assert (await unlink(api, ada, with_hub["id"])).status == 204


async def test_of_two_that_are_cut_off_at_once_one_stays(
    api: Api, issuer: Issuer, github: tuple[GitHub, str]
) -> None:
    """Without the lock of the user both go, and nobody gets in."""
    github[0].emails = GITHUB_EMAILS
    for _ in range(5):
        await with_github(api)
        ada = await signed_in(api, issuer)
        both = await identities(api, ada)
        answers = await asyncio.gather(*(unlink(api, ada, one["id"]) for one in both))
        assert sorted(answer.status for answer in answers) == [204, 409]
        assert len(await identities(api, ada)) == 1


# --- Going with the address.


async def test_they_go_with_the_address_they_came_with(
    api: Api, smtp: SmtpServer, issuer: Issuer
) -> None:
    ada = await confirmed(api, smtp)
    await signed_in(api, issuer)
    ada = await api.signed_in(ADA)
    body = {"new_email": "ada@example.org", "password": PASSWORD}
    await api.post("/auth/email/change", body, by=ada)
    [mail] = await mailed(smtp, "ada@example.org", "Confirm your new")
    assert (await confirm(api, token_in(mail))).status == 204
    assert await identities(api, ada) == []
    assert (await signed_in(api, issuer)).user_id != ada.user_id


async def test_another_spelling_of_the_address_is_the_same_address(
    api: Api, smtp: SmtpServer, issuer: Issuer
) -> None:
    await confirmed(api, smtp)
    await signed_in(api, issuer)
    api.clock.ahead = timedelta(hours=1)  # the mailbox has had enough for this one
    ada = await api.signed_in(ADA)
    body = {"new_email": "ADA@example.com", "password": PASSWORD}
    await api.post("/auth/email/change", body, by=ada)
    [mail] = await mailed(smtp, "ADA@example.com", "Confirm your new")
    assert (await confirm(api, token_in(mail))).status == 204
    assert len(await identities(api, ada)) == 1


async def test_a_new_password_by_mail_leaves_those_of_the_address_alone(
    api: Api, smtp: SmtpServer, issuer: Issuer, database: asyncpg.Connection
) -> None:
    await confirmed(api, smtp)
    await signed_in(api, issuer)
    await database.execute(
        "INSERT INTO identities (issuer, subject, user_id, created_at, email_key)"
        " SELECT 'https://other.example', 'thief', user_id, created_at, 'thief@example.org'"
        " FROM users"
    )
    assert (await reset(api, await forgotten(api, smtp, ADA))).status == 204
    issuers = await database.fetch("SELECT issuer FROM identities")
    assert [row["issuer"] for row in issuers] == [issuer.url]
