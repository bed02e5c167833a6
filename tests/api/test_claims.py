"""Registering where email addresses are confirmed first: a claim each, and one becomes the account.

Nobody does the jobs but the tests themselves: no decision waits for a mail.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain.claims import CLAIM_LIVES, MOST_RESENT
from service.domain.mails import TOKEN_LIVES
from service.settings.settings import Settings, read_settings
from service.use_cases.housekeeping import Housekeeping
from tests.api.assertions import assert_problem
from tests.api.mailing import ANNA, NEW_PASSWORD, Postman, assert_unusable, confirm, reset
from tests.factories import PASSWORD, Answer, Api, Person, new_email, running
from tests.stand_ins.smtp import SmtpServer

ATTACKERS: Final = "the password of a stranger"
VICTIMS: Final = "the password of anna"


@pytest.fixture
def settings(mail_environment: dict[str, str]) -> Settings:
    return read_settings(
        {**mail_environment, "SERVE_JOBS": "off", "EMAIL_CONFIRMATION": "required"}
    )


@pytest.fixture
async def strict(
    settings: Settings, database: asyncpg.Connection, redis: object
) -> AsyncIterator[Api]:
    async with running(settings) as api:
        yield api


@pytest.fixture
def postman(strict: Api, settings: Settings, smtp: SmtpServer) -> Postman:
    return Postman.of(strict, settings, smtp)


@pytest.fixture
async def lax(settings: Settings, database: object, redis: object) -> AsyncIterator[Api]:
    """The service as it was before email addresses had to be confirmed."""
    async with running(replace(settings, confirmation_required=False)) as api:
        yield api


async def register(api: Api, email: str = ANNA, password: str = PASSWORD, **members: Any) -> None:
    answer = await api.register(email, password=password, **members)
    assert answer.status == 202, answer.body
    assert answer.json() == {"status": "confirmation-sent"}


async def new_person(api: Api, postman: Postman, email: str, **members: Any) -> Person:
    """Register, confirm and sign in."""
    await register(api, email, **members)
    [token] = await postman.tokens()
    assert (await confirm(api, token)).status == 204
    return await api.signed_in(email)


async def passwords(api: Api, email: str = ANNA) -> dict[str, int]:
    """Return how signing in with each of the two passwords is answered."""
    return {
        password: (await api.log_in(email, password)).status for password in (ATTACKERS, VICTIMS)
    }


async def rows(database: asyncpg.Connection) -> dict[str, int]:
    """Return how many accounts, claims and tokens there are."""
    return {
        table: await database.fetchval(f"SELECT count(*) FROM {table}")
        for table in ("users", "claims", "mail_tokens")
    }


# --- Whose registration it is.


@pytest.mark.parametrize("first", [ATTACKERS, VICTIMS])
@pytest.mark.parametrize("confirmed", [0, 1])
async def test_confirming_makes_exactly_the_registration_whose_token_comes_back(
    strict: Api, postman: Postman, database: asyncpg.Connection, first: str, confirmed: int
) -> None:
    """Whoever registered first, and whichever is confirmed: its password, and no other, is good."""
    both = [first, VICTIMS if first == ATTACKERS else ATTACKERS]
    for password in both:
        await register(strict, password=password)
    tokens = await postman.tokens()
    assert set((await passwords(strict)).values()) == {401}
    assert (await confirm(strict, tokens[confirmed])).status == 204
    assert await passwords(strict) == {both[confirmed]: 200, both[1 - confirmed]: 401}
    assert_unusable(await confirm(strict, tokens[1 - confirmed]))
    assert await rows(database) == {"users": 1, "claims": 0, "mail_tokens": 0}
    assert await passwords(strict) == {both[confirmed]: 200, both[1 - confirmed]: 401}


@pytest.mark.parametrize("believed", ["the mail of the attacker's", "the own mail"])
async def test_a_queue_of_mails_that_is_late_changes_nothing(
    strict: Api, postman: Postman, believed: str
) -> None:
    """The attacker's mail is out, junk holds up all others, and the victim registers meanwhile."""
    await register(strict, password=ATTACKERS)
    [attackers] = await postman.tokens()
    for _ in range(36):
        await register(strict, new_email())
    await register(strict, password=VICTIMS)
    if believed == "the own mail":
        *_, victims = await postman.tokens()
        assert (await confirm(strict, victims)).status == 204
        assert await passwords(strict) == {ATTACKERS: 401, VICTIMS: 200}
        assert_unusable(await confirm(strict, attackers))
    else:
        assert (await confirm(strict, attackers)).status == 204
        assert await passwords(strict) == {ATTACKERS: 200, VICTIMS: 401}
        # The own registration has ended with it; the owner takes the account back.
        await strict.post("/auth/password/forgot", {"email": ANNA})
        token, *_ = await postman.tokens()  # before all the junk
        assert (await reset(strict, token, VICTIMS)).status == 204
    assert await passwords(strict) == {ATTACKERS: 401, VICTIMS: 200}


async def test_registering_again_touches_no_earlier_registration(
    strict: Api, postman: Postman
) -> None:
    await register(strict, password=VICTIMS)
    [victims] = await postman.tokens()
    for _ in range(5):
        await register(strict, password=ATTACKERS)
    await postman.deliver()
    assert (await confirm(strict, victims)).status == 204
    assert await passwords(strict) == {ATTACKERS: 401, VICTIMS: 200}


async def test_a_mail_says_when_it_was_signed_up_and_that_others_did_too(
    strict: Api, postman: Postman
) -> None:
    await register(strict, password=ATTACKERS)
    [alone] = await postman.deliver()
    strict.clock.ahead = timedelta(hours=2)
    await register(strict, password=VICTIMS)
    [second] = await postman.deliver()
    assert f"on {strict.clock():%-d %B %Y} at {strict.clock():%H}:" in second.text
    assert "UTC" in second.text
    assert "more than once" in second.text
    assert "more than once" not in alone.text


async def test_the_confirmation_is_sent_again_to_each_claim_with_a_token_of_its_own(
    strict: Api, postman: Postman
) -> None:
    await register(strict, password=ATTACKERS)
    await register(strict, password=VICTIMS)
    first = await postman.tokens()
    strict.clock.ahead += timedelta(hours=1)
    assert (await strict.post("/auth/email/resend", {"email": "ANNA@example.com"})).status == 202
    victims, attackers = await postman.tokens()  # the newest first
    assert len({*first, victims, attackers}) == 4
    assert (await confirm(strict, victims)).status == 204
    assert await passwords(strict) == {ATTACKERS: 401, VICTIMS: 200}
    assert_unusable(await confirm(strict, attackers))
    # There is nothing to confirm any more.
    strict.clock.ahead += timedelta(hours=1)
    assert (await strict.post("/auth/email/resend", {"email": ANNA})).status == 202
    assert await postman.deliver() == []


async def test_of_many_claims_the_newest_are_sent_again(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    for _ in range(MOST_RESENT + 2):
        await register(strict)
    await database.execute("DELETE FROM jobs")
    await strict.post("/auth/email/resend", {"email": ANNA})
    await postman.worker.work_one(next(iter(postman.worker._handlers)))
    sent = await database.fetch("SELECT payload ->> 'claim_id' AS id FROM jobs ORDER BY due_at")
    newest = await database.fetch(
        "SELECT claim_id::text AS id FROM claims ORDER BY claim_id DESC LIMIT $1", MOST_RESENT
    )
    assert sent == newest


async def test_either_token_of_one_claim_confirms_it_and_the_other_says_the_same(
    strict: Api, postman: Postman
) -> None:
    await register(strict)
    [first] = await postman.tokens()
    await strict.post("/auth/email/resend", {"email": ANNA})
    [second] = await postman.tokens()
    for token in (second, first, second, first):
        assert (await confirm(strict, token)).status == 204
    assert (await strict.log_in(ANNA)).status == 200


async def test_of_two_claims_confirmed_at_once_one_becomes_the_account(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    """Without ON CONFLICT in the INSERT of users, and its unique constraint, it would fail or be
    two. The lock that lets them queue is shown in tests/sql/test_races_of_accounts.py."""
    for _ in range(5):
        email = new_email()
        await register(strict, email, ATTACKERS)
        await register(strict, email, VICTIMS)
        tokens = await postman.tokens()
        answers = await asyncio.gather(*(confirm(strict, token) for token in tokens))
        assert sorted(answer.status for answer in answers) == [204, 422]
        won = answers[0].status == 204
        assert await passwords(strict, email) == {
            ATTACKERS: 200 if won else 401,
            VICTIMS: 401 if won else 200,
        }
    assert await rows(database) == {"users": 5, "claims": 0, "mail_tokens": 0}


async def test_a_claim_that_is_made_beside_a_confirmation_never_becomes_a_second_account(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    await register(strict, password=VICTIMS)
    [token] = await postman.tokens()
    confirming = asyncio.create_task(confirm(strict, token))
    await asyncio.gather(*(register(strict, password=ATTACKERS) for _ in range(5)))
    assert (await confirming).status == 204
    assert await passwords(strict) == {ATTACKERS: 401, VICTIMS: 200}
    told = await postman.deliver()
    assert all("already have an account" in mail.message["Subject"] for mail in told)
    assert await rows(database) == {"users": 1, "claims": 0, "mail_tokens": 0}


async def test_a_token_confirms_and_does_nothing_else(strict: Api, postman: Postman) -> None:
    await register(strict)
    [token] = await postman.tokens()
    assert_unusable(await reset(strict, token))
    assert (await confirm(strict, token)).status == 204


async def test_a_claim_and_its_tokens_end_with_their_time(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    await register(strict)
    [expired] = await postman.tokens()
    strict.clock.ahead = TOKEN_LIVES
    assert_unusable(await confirm(strict, expired))
    # Minutes before the claim ends there is no time left for a token.
    strict.clock.ahead = CLAIM_LIVES - timedelta(minutes=5)
    await strict.post("/auth/email/resend", {"email": ANNA})
    assert await postman.deliver() == []
    await database.execute("UPDATE mail_tokens SET expires_at = expires_at + interval '2 days'")
    strict.clock.ahead = CLAIM_LIVES
    assert_unusable(await confirm(strict, expired))
    await Housekeeping(strict.app[SERVICES].database, strict.clock).tidy_up()
    assert await rows(database) == {"users": 0, "claims": 0, "mail_tokens": 0}


# --- Until it is confirmed it is nothing.


async def test_an_email_that_is_only_claimed_is_as_if_it_were_unknown(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    bert = await new_person(strict, postman, "bert@example.com")
    code = await strict.new_code(bert, max_uses=1)
    await register(strict, referral_code=code)
    await register(strict, referral_code=code)
    known, unknown = [await strict.log_in(email) for email in (ANNA, "unknown@example.com")]
    assert_problem(known, 401, "invalid-credentials")
    assert {**known.json(), "request_id": ""} == {**unknown.json(), "request_id": ""}
    assert (await strict.get(f"/referral-code/{ANNA}")).status == 404
    assert (await strict.get("/referrals/me", by=bert)).json()["items"] == []
    assert (await strict.get("/referral-code", by=bert)).json()["uses"] == 0
    assert await database.fetchval("SELECT count(*) FROM users") == 1


async def test_who_forgot_the_password_of_a_claim_gets_no_mail_and_the_same_answer(
    strict: Api, postman: Postman
) -> None:
    await register(strict)
    [token] = await postman.tokens()
    answers = [
        await strict.post("/auth/password/forgot", {"email": email})
        for email in (ANNA, "unknown@example.com")
    ]
    assert [answer.status for answer in answers] == [202, 202]
    assert answers[0].body == answers[1].body
    assert await postman.deliver() == []
    assert (await confirm(strict, token)).status == 204


async def test_a_confirmed_account_is_told_and_keeps_its_password(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    await new_person(strict, postman, ANNA)
    await register(strict, password=ATTACKERS)
    [note] = await postman.deliver()
    assert "already have an account" in note.message["Subject"]
    assert note.links == []
    assert await rows(database) == {"users": 1, "claims": 0, "mail_tokens": 0}
    assert (await strict.log_in(ANNA)).status == 200


async def test_a_disabled_account_gets_no_mail_of_a_claim(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    await new_person(strict, postman, ANNA)
    await database.execute("UPDATE users SET disabled_at = now()")
    await register(strict)
    assert await postman.deliver() == []


async def test_the_account_is_there_with_its_confirmation(
    strict: Api, postman: Postman, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "service.security"):
        anna = await new_person(strict, postman, "Anna@Example.com")
    lines = [record.getMessage() for record in caplog.records if record.name == "service.security"]
    assert lines == ["account.registered", "email.confirmed", "sign_in.succeeded"]
    me = (await strict.get("/users/me", by=anna)).json()
    assert (me["email"], me["email_confirmed"], me["role"]) == ("Anna@Example.com", True, "user")
    items = (await strict.get("/users/me/activity", by=anna)).json()["items"]
    assert [item["event"] for item in items] == [
        "sign_in.succeeded",
        "email.confirmed",
        "account.registered",
    ]


# --- The referral code.


@pytest.mark.parametrize("max_uses", [None, 2])
async def test_a_use_and_a_place_in_the_list_come_with_the_confirmation(
    strict: Api, postman: Postman, max_uses: int | None
) -> None:
    bert = await new_person(strict, postman, "bert@example.com")
    code = await strict.new_code(bert, max_uses=max_uses)
    anna = await new_person(strict, postman, ANNA, referral_code=code.lower())
    assert (await strict.get("/users/me", by=anna)).json()["referrer_id"] == bert.user_id
    [referral] = (await strict.get("/referrals/me", by=bert)).json()["items"]
    assert (referral["id"], referral["code"]) == (anna.user_id, code)
    assert (await strict.get("/referral-code", by=bert)).json()["uses"] == 1


async def test_a_code_that_is_not_live_is_refused_whoever_has_the_email(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    bert = await new_person(strict, postman, "bert@example.com")
    code = await strict.new_code(bert)
    await strict.delete("/referral-code", by=bert)
    for unusable in (code, "NOBODYS", "?"):
        for email in ("bert@example.com", "unknown@example.com"):
            answer = await strict.register(email, referral_code=unusable)
            assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
    assert await database.fetchval("SELECT count(*) FROM claims") == 0


Happening = Callable[[Api, Person, asyncpg.Connection], Awaitable[Any]]


async def replaced(api: Api, owner: Person, _: asyncpg.Connection) -> None:
    assert (await api.put("/referral-code", {"expires_in_days": 9}, by=owner)).status == 200


async def deleted(api: Api, owner: Person, _: asyncpg.Connection) -> None:
    assert (await api.delete("/referral-code", by=owner)).status == 204


async def expired(_: Api, __: Person, database: asyncpg.Connection) -> None:
    await database.execute(
        "UPDATE referral_codes SET created_at = created_at - interval '30 d',"
        " expires_at = expires_at - interval '30 d'"
    )


async def disabled(_: Api, owner: Person, database: asyncpg.Connection) -> None:
    await database.execute("UPDATE users SET disabled_at = now() WHERE email = $1", owner.email)


async def erased(api: Api, owner: Person, _: asyncpg.Connection) -> None:
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=owner)).status == 204


async def used_up(_: Api, __: Person, database: asyncpg.Connection) -> None:
    await database.execute(
        "UPDATE referral_codes SET uses = max_uses, ended_at = now() WHERE max_uses IS NOT NULL"
    )


@pytest.mark.parametrize(
    ("happening", "max_uses", "counts"),
    [
        (replaced, None, True),
        (replaced, 1, True),
        (deleted, None, True),
        (deleted, 1, True),
        (expired, None, True),
        (expired, 1, True),
        (disabled, None, True),
        (disabled, 1, True),
        (erased, None, False),
        (erased, 1, False),
        (used_up, 1, False),
        (used_up, 5, False),
    ],
)
async def test_what_becomes_of_a_code_between_registering_and_confirming(
    strict: Api,
    postman: Postman,
    database: asyncpg.Connection,
    happening: Happening,
    max_uses: int | None,
    counts: bool,
) -> None:
    """One that has died counts, one that is used up or whose owner is erased does not."""
    bert = await new_person(strict, postman, "bert@example.com")
    code = await strict.new_code(bert, max_uses=max_uses)
    await register(strict, referral_code=code)
    [token] = await postman.tokens()
    await happening(strict, bert, database)
    assert (await confirm(strict, token)).status == 204
    anna = await strict.signed_in(ANNA)
    referrer_id = (await strict.get("/users/me", by=anna)).json()["referrer_id"]
    assert referrer_id == (bert.user_id if counts else None)
    assert await database.fetchval("SELECT count(*) FROM referrals") == counts
    uses = await database.fetchval(
        "SELECT c.uses + coalesce((SELECT sum(uses) FROM referral_code_uses), 0)"
        "  FROM referral_codes c WHERE c.code = $1",
        code,
    )
    assert uses == (max_uses if happening is used_up else counts)
    assert (
        await database.fetchval(
            "SELECT ended_at IS NOT NULL FROM referral_codes WHERE code = $1", code
        )
        or happening is expired
        or (max_uses is None and happening is disabled)
    )


async def test_of_claims_with_one_code_confirmed_at_once_max_uses_have_the_referrer(
    strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    """Without `uses < max_uses` in TAKE_BY_ID more would, or it would be a 500."""
    bert = await new_person(strict, postman, "bert@example.com")
    code = await strict.new_code(bert, max_uses=1)
    for _ in range(6):
        await register(strict, new_email(), referral_code=code)
    tokens = await postman.tokens()
    answers = await asyncio.gather(*(confirm(strict, token) for token in tokens))
    assert [answer.status for answer in answers] == [204] * 6
    assert await database.fetchval("SELECT count(*) FROM users") == 7
    assert await database.fetchval("SELECT count(*) FROM referrals") == 1
    [row] = await database.fetch("SELECT uses, ended_at FROM referral_codes")
    assert row["uses"] == 1
    assert row["ended_at"] is not None
    assert (await strict.get(f"/referral-code/{bert.email}")).status == 404


async def erase_once_referred(
    strict: Api, postman: Postman, database: asyncpg.Connection, code: str
) -> None:
    anna = await new_person(strict, postman, ANNA, referral_code=code)
    await erased(strict, anna, database)


async def move_once_referred(
    strict: Api, postman: Postman, database: asyncpg.Connection, code: str
) -> None:
    anna = await new_person(strict, postman, ANNA, referral_code=code)
    strict.clock.ahead += timedelta(hours=1)
    change = {"new_email": "anna@example.org", "password": PASSWORD}
    anna = await strict.signed_in(ANNA)
    assert (await strict.post("/auth/email/change", change, by=anna)).status == 202
    [token] = await postman.tokens()
    assert (await confirm(strict, token)).status == 204
    await postman.deliver()


@pytest.mark.parametrize("max_uses", [None, 9])
@pytest.mark.parametrize("gone", [erase_once_referred, move_once_referred])
async def test_who_was_referred_before_comes_back_without_a_referrer_and_nobody_learns_it(
    strict: Api,
    postman: Postman,
    database: asyncpg.Connection,
    gone: Callable[[Api, Postman, asyncpg.Connection, str], Awaitable[None]],
    max_uses: int | None,
) -> None:
    """A 422 would tell the owner of the code that the address was referred once."""
    bert = await new_person(strict, postman, "bert@example.com")
    code = await strict.new_code(bert, max_uses=max_uses)
    await gone(strict, postman, database, code)
    strict.clock.ahead += timedelta(hours=1)
    anna = await new_person(strict, postman, ANNA, referral_code=code)
    assert (await strict.get("/users/me", by=anna)).json()["referrer_id"] is None
    bert = await strict.signed_in(bert.email)
    assert (await strict.get("/referral-code", by=bert)).json()["uses"] == 1
    assert len((await strict.get("/referrals/me", by=bert)).json()["items"]) == 1


# --- Accounts that nobody has confirmed: of before the mode was switched, or of the release before.


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


@pytest.fixture
async def admin_of_lax(lax: Api, database: asyncpg.Connection) -> Person:
    await lax.register("admin@example.com")
    await database.execute("UPDATE users SET role = 'admin', email_confirmed_at = now()")
    return await lax.signed_in("admin@example.com")


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
    assert await passwords(strict) == {
        ATTACKERS: 200 if won else 401,
        VICTIMS: 401 if won else 200,
    }
    assert await rows(database) == {"users": 1, "claims": 0, "mail_tokens": 0}


async def test_a_resend_reaches_the_unconfirmed_account_and_the_claims_beside_it(
    lax: Api, strict: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    """Who has the account must not have to confirm a stranger's claim, nor the other way round."""
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
    """Else a claim could name the code of the account that it gets."""
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


# --- An address that becomes an account's, or ceases to be, otherwise.


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
    """Return all of an answer but what differs between any two."""
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
