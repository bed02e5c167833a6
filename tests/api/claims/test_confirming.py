"""Whose registration a confirmation makes, and what is there before it: nothing."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain.claims import CLAIM_LIVES, MOST_RESENT
from service.domain.mails import TOKEN_LIVES
from service.use_cases.housekeeping import Housekeeping
from tests.api.assertions import assert_problem
from tests.api.claims.conftest import ATTACKERS, VICTIMS, new_person, passwords, register, rows
from tests.api.mailing import ANNA, Postman, assert_unusable, confirm, reset
from tests.factories import Api, new_email


@pytest.mark.parametrize("first", [ATTACKERS, VICTIMS])
@pytest.mark.parametrize("confirmed", [0, 1])
async def test_confirming_makes_exactly_the_registration_whose_token_comes_back(
    strict: Api, postman: Postman, database: asyncpg.Connection, first: str, confirmed: int
) -> None:
    """No matter who registered first: the password of the confirmed claim works, and no other."""
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
    """The attacker's mail is sent, junk delays all others, and then the victim registers."""
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
