"""Referrals to oneself: they count, and are flagged for the referrer and for admins."""

import asyncio
import logging
from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.settings.settings import read_settings
from tests.api.mailing import Postman, confirm
from tests.factories import Api, Person, running
from tests.stand_ins.smtp import SmtpServer

BOB = "bob.smith@gmail.com"


@pytest.fixture
async def bob(api: Api) -> Person:
    return await api.new_person(BOB)


async def flags(api: Api, referrer: Person) -> dict[str, list[str]]:
    """Return the flags of each of the referrer's referrals, by email address."""
    page = (await api.get("/referrals/me", by=referrer)).json()
    return {item["email"]: item["flags"] for item in page["items"]}


@pytest.mark.parametrize(
    ("email", "flagged"),
    [
        ("bob.smith+1@gmail.com", True),
        ("bobsmith@gmail.com", True),
        ("b.o.b.s.m.i.t.h@gmail.com", True),
        ("Bob.Smith+x@GoogleMail.com", True),
        ("bobsmith+a+b@googlemail.com", True),
        ("bobby.smith@gmail.com", False),
        ("bob.smith@example.com", False),
        ("smith+bob@gmail.com", False),
    ],
)
async def test_another_address_of_the_referrers_mailbox_is_flagged_and_counts(
    api: Api, bob: Person, admin: Person, email: str, flagged: bool
) -> None:
    code = await api.new_code(bob, max_uses=1)
    person = await api.new_person(email, referral_code=code)
    expected = ["self-referral"] if flagged else []
    assert await flags(api, bob) == {email: expected}
    shown = (await api.get(f"/admin/users/{person.user_id}", by=admin)).json()
    assert shown["referral_flags"] == expected
    assert shown["referrer_id"] == bob.user_id
    assert (await api.get(f"/referral-code/{BOB}")).status == 404  # it was the one use
    listed = (await api.get(f"/admin/users?email={email.replace('+', '%2B')}", by=admin)).json()
    assert listed["items"][0]["referral_flags"] == expected


async def test_a_tag_is_cut_off_at_any_domain_and_dots_stay_where_they_may_matter(api: Api) -> None:
    anna = await api.new_person("an.na@example.com")
    code = await api.new_code(anna)
    for email in ("an.na+x@example.com", "anna@example.com"):
        await api.register(email, referral_code=code)
    assert await flags(api, anna) == {
        "anna@example.com": [],
        "an.na+x@example.com": ["self-referral"],
    }


async def test_several_addresses_of_one_other_mailbox_are_flagged_but_for_the_first(
    api: Api, anna: Person, bob: Person
) -> None:
    code = await api.new_code(anna)
    for number in range(4):
        await api.register(f"carl+{number}@gmail.com", referral_code=code)
    assert await flags(api, anna) == {
        "carl+0@gmail.com": [],
        **{f"carl+{number}@gmail.com": ["self-referral"] for number in (1, 2, 3)},
    }
    # With another referrer it is the first.
    await api.register("carl+4@gmail.com", referral_code=await api.new_code(bob))
    assert await flags(api, bob) == {"carl+4@gmail.com": []}


async def test_it_is_flagged_too_where_the_first_one_was_the_referrers_own_mailbox(
    api: Api, bob: Person, database: asyncpg.Connection
) -> None:
    code = await api.new_code(bob)
    await api.register("bobsmith+1@gmail.com", referral_code=code)
    await database.execute(
        "UPDATE users SET email = 'bob@work.example', email_key = 'bob@work.example'"
        " WHERE user_id = $1",
        bob.user_id,
    )
    await api.register("bobsmith+2@gmail.com", referral_code=code)
    assert set(map(tuple, (await flags(api, bob)).values())) == {("self-referral",)}


async def test_of_referrals_of_one_mailbox_at_once_one_is_without_a_flag(
    api: Api, anna: Person
) -> None:
    """Without the index referrals_one_unflagged_of_a_mailbox there are more."""
    code = await api.new_code(anna)
    emails = [f"carl+{number}@gmail.com" for number in range(10)]
    answers = await asyncio.gather(*(api.register(email, referral_code=code) for email in emails))
    assert {answer.status for answer in answers} == {201}
    assert sorted((await flags(api, anna)).values()) == [[], *[["self-referral"]] * 9]
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 10


async def test_operators_read_of_a_flag_in_one_line_and_the_account_does_not(
    api: Api, bob: Person, caplog: pytest.LogCaptureFixture
) -> None:
    code = await api.new_code(bob)
    with caplog.at_level(logging.INFO, "service.security"):
        person = await api.new_person("bobsmith@gmail.com", referral_code=code)
    lines = [record for record in caplog.records if record.getMessage() == "referral.flagged"]
    assert [vars(line)["reason"] for line in lines] == ["self-referral"]
    items = (await api.get("/users/me/activity", by=person)).json()["items"]
    assert [item["event"] for item in items] == ["sign_in.succeeded", "account.registered"]
    of_bob = (await api.get("/users/me/activity", by=bob)).json()["items"]
    assert [item["event"] for item in of_bob] == ["sign_in.succeeded", "account.registered"]


async def test_the_flag_and_the_hash_outlive_the_account(
    api: Api, bob: Person, database: asyncpg.Connection
) -> None:
    code = await api.new_code(bob)
    person = await api.new_person("carl@gmail.com", referral_code=code)
    await api.delete("/users/me", {"password": person.password}, by=person)
    await api.register("carl+2@gmail.com", referral_code=code)
    page = (await api.get("/referrals/me", by=bob)).json()["items"]
    assert [(item["email"], item["flags"]) for item in page] == [
        ("carl+2@gmail.com", ["self-referral"]),
        (None, []),
    ]
    hashes = await database.fetch("SELECT DISTINCT mailbox_hash FROM referrals")
    assert [len(row["mailbox_hash"]) for row in hashes] == [32]


@pytest.fixture
async def strict(
    mail_environment: dict[str, str], database: object, redis: object
) -> AsyncIterator[Api]:
    settings = read_settings(
        {**mail_environment, "SERVE_JOBS": "off", "EMAIL_CONFIRMATION": "required"}
    )
    async with running(settings) as api:
        yield api


async def test_it_is_flagged_where_addresses_are_confirmed_too(
    strict: Api, mail_environment: dict[str, str], smtp: SmtpServer
) -> None:
    required = {**mail_environment, "EMAIL_CONFIRMATION": "required"}
    postman = Postman.of(strict, read_settings(required), smtp)

    async def register(email: str, **members: str) -> None:
        assert (await strict.register(email, **members)).status == 202
        [token] = await postman.tokens()
        assert (await confirm(strict, token)).status == 204

    await register(BOB)
    bob = await strict.signed_in(BOB)
    code = await strict.new_code(bob)
    await register("bobsmith+1@googlemail.com", referral_code=code)
    assert await flags(strict, bob) == {"bobsmith+1@googlemail.com": ["self-referral"]}
