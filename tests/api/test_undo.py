"""Undoing a change of the account by mail: what an owner does, and what a thief tries."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain.account_changes import UNDO_LIVES
from service.settings.settings import read_settings
from service.use_cases.housekeeping import Housekeeping
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.api.issuer import Issuer, sign_in, signed_in
from tests.api.mailing import (
    ANNA,
    NEW_PASSWORD,
    assert_unusable,
    confirm,
    forgotten,
    mailed,
    reset,
    token_in,
)
from tests.factories import PASSWORD, Answer, Api, Person, running
from tests.oauth import new_application, refusal
from tests.stand_ins.smtp import SmtpServer, accept, refuse

THIEF, ANOTHER = "thief@example.org", "another@example.org"
ADA = "Ada@example.com"

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
async def api(
    mail_environment: dict[str, str],
    provider_environment: dict[str, str],
    database: asyncpg.Connection,
    redis: object,
) -> AsyncIterator[Api]:
    async with running(read_settings({**mail_environment, **provider_environment})) as api:
        yield api


@pytest.fixture
async def anna(api: Api, smtp: SmtpServer) -> Person:
    """Anna, whose address is confirmed."""
    anna = await api.new_person(ANNA)
    await confirm(api, token_in((await mailed(smtp, ANNA, "Confirm"))[0]))
    return anna


async def changing(
    api: Api, smtp: SmtpServer, by: Person, new_email: str, password: str = PASSWORD
) -> str:
    """Ask for another address; return the token that was mailed there."""
    body = {"new_email": new_email, "password": password}
    assert (await api.post("/auth/email/change", body, by=by)).status == 202
    return token_in((await mailed(smtp, new_email, "Confirm your new"))[0])


async def changed(
    api: Api, smtp: SmtpServer, by: Person, new_email: str, password: str = PASSWORD
) -> str:
    """Give the account another address; return the token that was mailed to the old one."""
    old = (await api.get("/users/me", by=by)).json()["email"]
    assert (await confirm(api, await changing(api, smtp, by, new_email, password))).status == 204
    return await undo_token(smtp, old)


async def undo_token(smtp: SmtpServer, email: str) -> str:
    return token_in((await mailed(smtp, email, "Your email address for"))[-1])


async def undo(api: Api, token: str) -> Answer:
    return await api.post("/auth/undo", {"token": token})


async def address_of(database: asyncpg.Connection, person: Person) -> str | None:
    email: str | None = await database.fetchval(
        "SELECT email FROM users WHERE user_id = $1", person.user_id
    )
    return email


# --- A changed email address.


async def test_the_old_address_gets_the_account_back(
    api: Api, smtp: SmtpServer, anna: Person
) -> None:
    code = await api.new_code(anna)
    token = await changed(api, smtp, anna, THIEF)
    [mail] = await mailed(smtp, ANNA, "Your email address for referrals was changed")
    assert mail.links == [f"https://app.example.com/undo#token={token}"]
    assert "72 hours" in mail.text
    assert (await api.get(f"/referral-code/{ANNA}")).status == 404
    assert (await api.get(f"/referral-code/{THIEF}")).status == 200  # both are cached

    assert (await undo(api, token)).status == 204
    assert (await api.get("/users/me", by=anna)).status == 401
    refreshed = await api.post("/auth/refresh", {"refresh_token": anna.refresh_token})
    assert refreshed.status == 401
    assert (await api.log_in(THIEF)).status == 401
    again = await api.signed_in(ANNA)
    me = (await api.get("/users/me", by=again)).json()
    assert (me["id"], me["email"], me["email_confirmed"]) == (anna.user_id, ANNA, True)
    assert (await api.get(f"/referral-code/{THIEF}")).status == 404
    assert (await api.get(f"/referral-code/{ANNA}")).json()["code"] == code
    assert_unusable(await undo(api, token))
    # The address that lost it is told, and can do nothing.
    [told] = await mailed(smtp, THIEF, "Your email address for referrals was changed")
    assert told.links == []


async def test_a_change_that_can_be_undone_is_exported_with_the_account(
    api: Api, smtp: SmtpServer, anna: Person
) -> None:
    token = await changed(api, smtp, anna, THIEF)
    told = await api.app[SERVICES].personal_data.export(UUID(anna.user_id))
    [change] = told["account_changes"]
    assert (change["kind"], change["email"], change["undone"]) == ("email", ANNA, False)
    assert set(change) == {"kind", "email", "issuer", "undone", "expires_at"}, "no token's hash"
    assert (await undo(api, token)).status == 204


@pytest.mark.parametrize("token", ["", "x", "\u0000", "ü" * 2000, "a" * 43])
async def test_what_was_never_mailed_undoes_nothing(api: Api, token: str) -> None:
    assert_unusable(await undo(api, token))


async def test_a_token_of_another_purpose_undoes_nothing(
    api: Api, smtp: SmtpServer, anna: Person
) -> None:
    token = await changed(api, smtp, anna, THIEF)
    assert_unusable(await undo(api, await forgotten(api, smtp, THIEF)))
    assert_unusable(await confirm(api, token))
    assert_unusable(await reset(api, token))
    assert (await undo(api, token)).status == 204


@pytest.mark.parametrize("lives", [UNDO_LIVES - timedelta(seconds=5), UNDO_LIVES])
async def test_a_token_is_good_for_72_hours_from_when_its_mail_is_sent(
    api: Api, smtp: SmtpServer, anna: Person, database: asyncpg.Connection, lives: timedelta
) -> None:
    to_confirm = await changing(api, smtp, anna, THIEF)
    smtp.play(refuse("450 4.2.1 Try again later"))
    assert (await confirm(api, to_confirm)).status == 204
    async with asyncio.timeout(10):
        while not await database.fetchval("SELECT last_error FROM jobs WHERE kind = 'mail'"):
            await asyncio.sleep(0.02)
    api.clock.ahead += timedelta(hours=10)
    smtp.play(accept)
    token = await undo_token(smtp, ANNA)
    api.clock.ahead += lives
    assert (await undo(api, token)).status == (422 if lives == UNDO_LIVES else 204)


async def test_a_mail_that_was_given_up_is_worth_its_72_hours_when_it_is_sent_after_all(
    api: Api, smtp: SmtpServer, anna: Person, database: asyncpg.Connection
) -> None:
    to_confirm = await changing(api, smtp, anna, THIEF)
    smtp.play(refuse("550 5.7.1 Not now"))
    assert (await confirm(api, to_confirm)).status == 204
    await no_jobs(database)  # but the one that is parked
    api.clock.ahead += timedelta(days=4)
    await Housekeeping(api.app[SERVICES].database, api.clock).tidy_up()
    smtp.play(accept)
    assert await api.app[SERVICES].jobs.retry(None) == 1
    token = await undo_token(smtp, ANNA)
    api.clock.ahead += UNDO_LIVES - timedelta(minutes=1)
    assert (await undo(api, token)).status == 204


async def test_the_database_never_holds_a_token_and_forgets_its_hash(
    api: Api, smtp: SmtpServer, anna: Person, database: asyncpg.Connection
) -> None:
    token = await changed(api, smtp, anna, THIEF)
    await no_jobs(database)
    rows = await database.fetch("SELECT t::text AS row FROM account_changes t")
    assert len(rows) == 1
    assert token not in rows[0]["row"]
    api.clock.ahead += UNDO_LIVES
    await Housekeeping(api.app[SERVICES].database, api.clock).tidy_up()
    assert await database.fetchval("SELECT count(*) FROM account_changes") == 0


async def test_of_many_who_undo_at_once_one_is_first(
    api: Api, smtp: SmtpServer, anna: Person
) -> None:
    """Without the condition on the token in TAKE there are more."""
    token = await changed(api, smtp, anna, THIEF)
    answers = await asyncio.gather(*(undo(api, token) for _ in range(10)))
    assert sorted(answer.status for answer in answers) == [204, *[422] * 9]


# --- What a thief tries.


async def test_a_change_after_the_change_is_undone_with_it(
    api: Api, smtp: SmtpServer, anna: Person, database: asyncpg.Connection
) -> None:
    owners = await changed(api, smtp, anna, THIEF)
    thiefs = await changed(api, smtp, anna, ANOTHER)
    assert (await undo(api, owners)).status == 204
    assert await address_of(database, anna) == ANNA
    assert_unusable(await undo(api, thiefs))
    assert await address_of(database, anna) == ANNA


async def test_a_later_change_is_undone_alone(
    api: Api, smtp: SmtpServer, anna: Person, database: asyncpg.Connection
) -> None:
    """Anna has moved, and then there is a thief: both her mailboxes are hers."""
    moved = "anna@example.org"
    first = await changed(api, smtp, anna, moved)
    second = await changed(api, smtp, anna, THIEF)
    assert (await undo(api, second)).status == 204
    assert await address_of(database, anna) == moved
    assert (await undo(api, first)).status == 204
    assert await address_of(database, anna) == ANNA


async def test_a_mail_that_is_late_gives_a_thief_no_token(
    mail_environment: dict[str, str],
    api: Api,
    smtp: SmtpServer,
    anna: Person,
    database: asyncpg.Connection,
) -> None:
    owners = await changed(api, smtp, anna, THIEF)
    to_confirm = await changing(api, smtp, anna, ANOTHER)
    smtp.play(refuse("450 4.2.1 Try again later"))
    assert (await confirm(api, to_confirm)).status == 204
    assert (await undo(api, owners)).status == 204
    smtp.play(accept)
    await no_jobs(database)
    assert [mail for mail in smtp.mails_to(THIEF) if "/undo#" in mail.text] == []


@pytest.mark.parametrize("way", ["change", "reset"])
async def test_a_password_chosen_after_the_change_is_the_thiefs(
    api: Api, smtp: SmtpServer, anna: Person, way: str
) -> None:
    token = await changed(api, smtp, anna, THIEF)
    if way == "change":
        body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
        assert (await api.post("/auth/password/change", body, by=anna)).status == 204
    else:
        assert (await reset(api, await forgotten(api, smtp, THIEF))).status == 204
    assert (await undo(api, token)).status == 204
    for email in (ANNA, THIEF):
        assert (await api.log_in(email, NEW_PASSWORD)).status == 401
    [mail] = await mailed(smtp, ANNA, "Choose a new password")
    assert (await reset(api, token_in(mail), "a third long password")).status == 204
    assert (await api.log_in(ANNA, "a third long password")).status == 200


async def test_the_owner_is_mailed_a_token_for_a_new_password(
    api: Api, smtp: SmtpServer, anna: Person
) -> None:
    """Whoever changed the address knew the old one, which is the owner's as well."""
    assert (await undo(api, await changed(api, smtp, anna, THIEF))).status == 204
    thief = await api.signed_in(ANNA)
    [mail] = await mailed(smtp, ANNA, "Choose a new password")
    assert (await reset(api, token_in(mail))).status == 204
    assert (await api.get("/users/me", by=thief)).status == 401
    assert (await api.log_in(ANNA)).status == 401


async def test_neither_a_new_password_nor_another_session_ends_the_token(
    api: Api, smtp: SmtpServer, anna: Person
) -> None:
    """Whatever ends mailed tokens otherwise is in the hands of a thief."""
    token = await changed(api, smtp, anna, THIEF)
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert (await api.post("/auth/password/change", body, by=anna)).status == 204
    assert (await reset(api, await forgotten(api, smtp, THIEF), PASSWORD)).status == 204
    thief = await api.signed_in(THIEF)
    await changed(api, smtp, thief, ANOTHER)
    assert (await api.delete("/auth/sessions", by=thief)).status == 204
    assert (await api.post("/auth/logout", by=thief)).status == 204
    assert (await undo(api, token)).status == 204


async def test_what_a_thief_has_asked_for_ends(api: Api, smtp: SmtpServer, anna: Person) -> None:
    application = await new_application(api)
    token = await changed(api, smtp, anna, THIEF)
    to_reset = await forgotten(api, smtp, THIEF)
    to_change = await changing(api, smtp, anna, ANOTHER)
    thief = Person(anna.user_id, THIEF, anna.access_token, anna.refresh_token)
    code = await application.code_of(thief)
    assert (await undo(api, token)).status == 204
    assert_unusable(await reset(api, to_reset))
    assert_unusable(await confirm(api, to_change))
    assert refusal(await application.redeem(code)) == (400, "invalid_grant")


async def test_beside_another_change_the_undo_wins(
    api: Api, smtp: SmtpServer, anna: Person, database: asyncpg.Connection
) -> None:
    """Whichever is first."""
    token = await changed(api, smtp, anna, THIEF)
    to_change = await changing(api, smtp, anna, ANOTHER)
    undone, other = await asyncio.gather(undo(api, token), confirm(api, to_change))
    assert undone.status == 204
    assert other.status in {204, 422}
    await no_jobs(database)
    for mail in smtp.mails_to(THIEF):
        if "/undo#" in mail.text:
            assert_unusable(await undo(api, token_in(mail)))
    assert await address_of(database, anna) == ANNA


async def test_an_account_registered_with_the_address_meanwhile_is_not_in_the_way(
    api: Api, smtp: SmtpServer, anna: Person, database: asyncpg.Connection
) -> None:
    token = await changed(api, smtp, anna, THIEF)
    squatter = await api.new_person(ANNA)
    await api.new_code(squatter)
    assert (await api.get(f"/referral-code/{ANNA}")).status == 200
    assert (await undo(api, token)).status == 204
    assert (await api.get("/users/me", by=squatter)).status == 401
    assert (await api.get(f"/referral-code/{ANNA}")).status == 404
    assert (await api.signed_in(ANNA)).user_id == anna.user_id
    erased = await database.fetchval(
        "SELECT erased_at FROM users WHERE user_id = $1", squatter.user_id
    )
    assert erased is not None


@pytest.mark.parametrize("change", ["email_confirmed_at = now()", "role = 'admin'"])
async def test_one_that_is_somebodys_is(
    api: Api, smtp: SmtpServer, anna: Person, database: asyncpg.Connection, change: str
) -> None:
    token = await changed(api, smtp, anna, THIEF)
    other = await api.new_person(ANNA)
    await database.execute(f"UPDATE users SET {change} WHERE user_id = $1", other.user_id)
    assert_unusable(await undo(api, token))
    assert (await api.get("/users/me", by=other)).status == 200
    assert await address_of(database, anna) == THIEF


async def test_beside_registrations_of_the_address_the_undo_wins(
    api: Api, smtp: SmtpServer, anna: Person, database: asyncpg.Connection
) -> None:
    token = await changed(api, smtp, anna, THIEF)
    undone, *_ = await asyncio.gather(undo(api, token), *(api.register(ANNA) for _ in range(8)))
    assert undone.status == 204
    assert await address_of(database, anna) == ANNA
    assert await database.fetchval("SELECT count(*) FROM users WHERE email = $1", ANNA) == 1


async def test_identities_that_came_with_the_thiefs_address_go(
    api: Api, smtp: SmtpServer, anna: Person, issuer: Issuer
) -> None:
    token = await changed(api, smtp, anna, ADA)
    await signed_in(api, issuer)
    assert (await undo(api, token)).status == 204
    again = await api.signed_in(ANNA)
    assert (await api.get("/users/me/identities", by=again)).json()["items"] == []
    assert (await signed_in(api, issuer)).user_id != anna.user_id


async def test_a_disabled_account_stays_disabled(
    api: Api, smtp: SmtpServer, anna: Person, database: asyncpg.Connection
) -> None:
    token = await changed(api, smtp, anna, THIEF)
    await database.execute("UPDATE users SET disabled_at = now()")
    assert (await undo(api, token)).status == 204
    assert_problem(await api.log_in(ANNA), 403, "account-disabled")


async def test_an_erased_account_is_not_brought_back(
    api: Api, smtp: SmtpServer, anna: Person, database: asyncpg.Connection
) -> None:
    token = await changed(api, smtp, anna, THIEF)
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=anna)).status == 204
    assert await database.fetchval("SELECT count(*) FROM account_changes") == 0
    assert_unusable(await undo(api, token))


async def test_an_address_that_was_never_confirmed_is_not_confirmed_by_an_undo(
    api: Api, smtp: SmtpServer
) -> None:
    """Otherwise who registers a stranger's address, and lets it be undone, shares the account."""
    squatter = await api.new_person(ANNA)
    token = await changed(api, smtp, squatter, THIEF)
    assert (await undo(api, token)).status == 204
    again = await api.signed_in(ANNA)
    assert not (await api.get("/users/me", by=again)).json()["email_confirmed"]
    [mail] = await mailed(smtp, ANNA, "Choose a new password")
    assert (await reset(api, token_in(mail))).status == 204
    assert (await api.get("/users/me", by=again)).status == 401


# --- A linked identity.


@pytest.fixture
async def ada(api: Api, smtp: SmtpServer) -> Person:
    """Ada, whose address the issuer has verified as well."""
    ada = await api.new_person(ADA)
    await confirm(api, token_in((await mailed(smtp, ADA, "Confirm"))[0]))
    return ada


async def test_a_linked_identity_is_cut_off_and_not_linked_again(
    api: Api, smtp: SmtpServer, ada: Person, issuer: Issuer
) -> None:
    thief = await signed_in(api, issuer)
    assert thief.user_id == ada.user_id
    [mail] = await mailed(smtp, ADA, "A new way to sign in")
    [link] = mail.links
    assert link.startswith("https://app.example.com/undo#token=")
    to_reset = await forgotten(api, smtp, ADA)
    assert (await undo(api, token_in(mail))).status == 204
    assert (await api.get("/users/me", by=thief)).status == 401
    assert_unusable(await reset(api, to_reset))
    assert_problem(await sign_in(api, issuer), 409, "identity-not-linked")
    again = await api.signed_in(ADA)  # the password stays
    assert (await api.get("/users/me/identities", by=again)).json()["items"] == []
    assert_unusable(await undo(api, token_in(mail)))


async def test_a_mail_that_is_sent_twice_gives_no_second_token(
    api: Api, smtp: SmtpServer, ada: Person, issuer: Issuer, database: asyncpg.Connection
) -> None:
    """Its worker was too slow: the owner has been quicker."""
    await signed_in(api, issuer)
    [mail] = await mailed(smtp, ADA, "A new way to sign in")
    await no_jobs(database)
    assert (await undo(api, token_in(mail))).status == 204
    await database.execute(
        "INSERT INTO jobs (job_id, kind, payload, created_at, due_at)"
        " SELECT gen_random_uuid(), 'mail', jsonb_build_object('mail', 'account_change',"
        " 'user_id', user_id, 'account_change_id', account_change_id), now(), now()"
        " FROM account_changes"
    )
    await no_jobs(database)
    assert len(await mailed(smtp, ADA, "A new way to sign in")) == 1


async def test_undoing_a_link_leaves_the_token_for_the_address_good(
    api: Api, smtp: SmtpServer, ada: Person, issuer: Issuer, database: asyncpg.Connection
) -> None:
    thief = await signed_in(api, issuer)
    [mail] = await mailed(smtp, ADA, "A new way to sign in")
    token = await changed(api, smtp, thief, THIEF)
    assert (await undo(api, token_in(mail))).status == 204
    assert (await undo(api, token)).status == 204
    assert await address_of(database, ada) == ADA
    assert_problem(await sign_in(api, issuer), 409, "identity-not-linked")


async def test_an_identity_that_is_another_accounts_by_now_is_left_there(
    api: Api, smtp: SmtpServer, ada: Person, issuer: Issuer
) -> None:
    linked = await signed_in(api, issuer)
    [mail] = await mailed(smtp, ADA, "A new way to sign in")
    [identity] = (await api.get("/users/me/identities", by=linked)).json()["items"]
    assert (await api.delete(f"/users/me/identities/{identity['id']}", by=linked)).status == 204
    issuer.claims["email"] = "ada@example.org"
    elsewhere = await signed_in(api, issuer)
    assert elsewhere.user_id != ada.user_id
    before = await api.get("/users/me/identities", by=elsewhere)
    assert (await undo(api, token_in(mail))).status == 204
    assert (await api.get("/users/me/identities", by=elsewhere)).body == before.body
    assert (await api.get("/users/me", by=linked)).status == 401


async def test_without_a_mail_server_there_is_nothing_to_undo(
    environment: dict[str, str],
    provider_environment: dict[str, str],
    database: asyncpg.Connection,
    redis: object,
    issuer: Issuer,
) -> None:
    async with running(read_settings({**environment, **provider_environment})) as api:
        ada = await api.new_person(ADA)
        await database.execute("UPDATE users SET email_confirmed_at = now()")
        assert (await signed_in(api, issuer)).user_id == ada.user_id
        assert await database.fetchval("SELECT count(*) FROM account_changes") == 0
