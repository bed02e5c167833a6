"""Making admins: only of those who own their email address, and never of a stranger's session."""

from uuid import UUID

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain.errors import EmailNotConfirmed, EmailTaken, LastAdmin, UserNotFound
from service.settings.settings import read_settings
from service.use_cases.users import Users
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.api.mailing import assert_unusable, confirm, token_in
from tests.factories import PASSWORD, Api, Person, running
from tests.oauth import new_application, refusal
from tests.sql.racing import until_blocked
from tests.stand_ins.smtp import SmtpServer

CONFIRM = "UPDATE users SET email_confirmed_at = now() WHERE user_id = $1"


@pytest.fixture
def users(api: Api) -> Users:
    return api.app[SERVICES].users


@pytest.fixture
async def root(api: Api, database: asyncpg.Connection) -> Person:
    """A person who has confirmed the email address."""
    person = await api.new_person("root@example.com")
    await database.execute(CONFIRM, person.user_id)
    return person


async def test_who_has_not_confirmed_the_address_is_not_promoted(
    api: Api, users: Users, anna: Person
) -> None:
    with pytest.raises(EmailNotConfirmed):
        await users.promote(anna.email)
    assert (await api.get("/users/me", by=anna)).json()["role"] == "user"
    refreshed = await api.post("/auth/refresh", {"refresh_token": anna.refresh_token})
    assert refreshed.status == 200, "and stays signed in"


async def test_promotion_ends_what_a_stranger_may_hold(
    api: Api, other: Api, users: Users, root: Person, database: asyncpg.Connection
) -> None:
    application = await new_application(api)
    tokens, code = await application.tokens_of(root), await application.code_of(root)
    assert (await other.get("/users/me", by=root)).status == 200
    assert await users.promote("ROOT@example.com")
    assert_problem(await other.get("/users/me", by=root), 401, "invalid-token")
    refreshed = await api.post("/auth/refresh", {"refresh_token": root.refresh_token})
    assert_problem(refreshed, 401, "invalid-token")
    assert not await application.is_alive(tokens)
    assert refusal(await application.redeem(code)) == (400, "invalid_grant")
    again = await api.signed_in(root.email)
    assert (await api.get("/admin/users", by=again)).status == 200
    items = (await api.get("/users/me/activity", by=again)).json()["items"]
    assert [item["event"] for item in items[:3]] == [
        "sign_in.succeeded",
        "session.ended",
        "admin.promoted",
    ]


async def test_promoting_again_changes_nothing(
    api: Api, users: Users, root: Person, database: asyncpg.Connection
) -> None:
    assert await users.promote(root.email) is True
    again = await api.signed_in(root.email)
    assert await users.promote(root.email) is False
    assert (await api.get("/admin/users", by=again)).status == 200
    told = "SELECT count(*) FROM security_events WHERE event = 'admin.promoted'"
    assert await database.fetchval(told) == 1


async def test_a_change_of_address_that_was_asked_for_before_is_of_no_use(
    mail_environment: dict[str, str], smtp: SmtpServer, database: asyncpg.Connection, redis: object
) -> None:
    """A stranger's session asks for it, the session ends, and the token in the mail with it."""
    async with running(read_settings(mail_environment)) as api:
        root = await api.new_person("root@example.com")
        await database.execute(CONFIRM, root.user_id)
        change = {"new_email": "thief@example.com", "password": PASSWORD}
        assert (await api.post("/auth/email/change", change, by=root)).status == 202
        await no_jobs(database)
        [mail] = [mail for mail in smtp.mails if mail.rcpt_tos == ("thief@example.com",)]
        await api.app[SERVICES].users.promote(root.email)
        await no_jobs(database)
        assert_unusable(await confirm(api, token_in(mail)))
        owner = smtp.mails[-1]
        assert owner.rcpt_tos == ("root@example.com",)
        assert owner.message["Subject"] == "You are now an admin of referrals"


async def test_nobody_is_promoted_who_takes_the_address_away_meanwhile(
    api: Api, users: Users, root: Person, database: asyncpg.Connection
) -> None:
    """Without FOR UPDATE in LOCK_BY_EMAIL the account that has left the address would be."""
    async with database.transaction():
        await database.execute(
            "UPDATE users SET email = $2, email_key = $2 WHERE user_id = $1",
            root.user_id,
            "elsewhere@example.com",
        )
        promoting = await until_blocked(database, users.promote("root@example.com"))
    with pytest.raises(UserNotFound):
        await promoting
    assert await database.fetchval("SELECT count(*) FROM users WHERE role = 'admin'") == 0


async def test_a_demoted_admin_is_signed_out_and_a_user_again(
    api: Api, other: Api, users: Users, admin: Person, root: Person
) -> None:
    await users.promote(root.email)
    root = await api.signed_in(root.email)
    assert (await other.get("/admin/users", by=root)).status == 200
    await users.demote(root.email)
    assert_problem(await other.get("/admin/users", by=root), 401, "invalid-token")
    again = await api.signed_in(root.email)
    assert_problem(await api.get("/admin/users", by=again), 403, "insufficient-scope")
    for nobody in (root.email, "nobody@example.com"):
        with pytest.raises(UserNotFound):
            await users.demote(nobody)
    with pytest.raises(LastAdmin):
        await users.demote(admin.email)


async def test_admins_are_listed_with_how_they_stand(
    api: Api, users: Users, admin: Person, root: Person
) -> None:
    await users.promote(root.email)
    await users.set_disabled(UUID(admin.user_id), True, "operator")
    old, new = await users.admins()
    assert (old.email, old.promoted_at, old.email_confirmed, old.disabled) == (
        admin.email,
        None,
        False,
        True,
    )
    assert (new.user_id, new.email_confirmed, new.disabled) == (UUID(root.user_id), True, False)
    assert new.promoted_at is not None


async def test_an_operator_who_makes_an_admin_vouches_for_the_address(
    api: Api, users: Users, anna: Person
) -> None:
    await users.make_admin("operator@example.com", PASSWORD)
    operator = await api.signed_in("operator@example.com")
    me = (await api.get("/users/me", by=operator)).json()
    assert (me["role"], me["email_confirmed"]) == ("admin", True)
    assert await users.promote("operator@example.com") is False
    with pytest.raises(EmailTaken):
        await users.make_admin(anna.email, PASSWORD)
    assert (await api.get("/users/me", by=anna)).json()["role"] == "user"
