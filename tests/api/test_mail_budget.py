"""No mailbox gets more than so many mails, whatever causes them, and resets go before the rest."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain.mails import MOST_MAILS_A_DAY, MOST_MAILS_AN_HOUR, RESET_HEAD_START
from service.settings.settings import Settings, read_settings
from service.use_cases.housekeeping import Housekeeping
from tests.api.mailing import ANNA, NEW_PASSWORD, Postman, confirm, token_in
from tests.factories import PASSWORD, Api, running
from tests.stand_ins.smtp import SmtpServer, accept, refuse

HOUR: Final = timedelta(hours=1)
Cause = Callable[[Api, str], Awaitable[Any]]

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def settings(mail_environment: dict[str, str]) -> Settings:
    return read_settings({**mail_environment, "SERVE_JOBS": "off"})


@pytest.fixture
async def api(settings: Settings, database: object, redis: object) -> AsyncIterator[Api]:
    async with running(settings) as api:
        yield api


@pytest.fixture
def postman(api: Api, settings: Settings, smtp: SmtpServer) -> Postman:
    return Postman.of(api, settings, smtp)


async def forgot(api: Api, email: str) -> None:
    assert (await api.post("/auth/password/forgot", {"email": email})).status == 202


async def resend(api: Api, email: str) -> None:
    assert (await api.post("/auth/email/resend", {"email": email})).status == 202


async def register_anew(api: Api, email: str) -> None:
    """As an account of the address that is erased each time."""
    person = await api.new_person(email)
    erased = await api.delete("/users/me", {"password": PASSWORD}, by=person)
    assert erased.status == 204
    await api.register(email)


async def change_to(api: Api, email: str) -> None:
    """By another account each time."""
    person = await api.new_person()
    body = {"new_email": email, "password": PASSWORD}
    assert (await api.post("/auth/email/change", body, by=person)).status == 202


@pytest.mark.parametrize("cause", [forgot, resend, change_to])
async def test_a_mailbox_gets_3_mails_an_hour_and_10_a_day_and_some_are_left_for_resets(
    api: Api, postman: Postman, cause: Cause
) -> None:
    await api.register(ANNA)  # the first mail
    sent = []
    for _ in range(26):
        for _ in range(4):
            await cause(api, ANNA)
        await postman.deliver()
        sent.append(len(postman.smtp.mails_to(ANNA)))
        api.clock.ahead += HOUR
    an_hour = MOST_MAILS_AN_HOUR if cause is forgot else MOST_MAILS_AN_HOUR - 1
    a_day = MOST_MAILS_A_DAY if cause is forgot else MOST_MAILS_A_DAY - 3
    assert sent[0] == an_hour
    assert sent[1] == an_hour * 2
    assert sent[23] == a_day
    assert sent[24] > a_day  # those of the first hour are a day ago
    assert sent[25] <= a_day + an_hour * 2


async def test_whatever_the_causes_are_they_count_together(api: Api, postman: Postman) -> None:
    await register_anew(api, ANNA)
    await change_to(api, ANNA)
    await resend(api, ANNA)
    await change_to(api, ANNA)
    await postman.deliver()
    assert len(postman.smtp.mails_to(ANNA)) == 2
    for _ in range(3):
        await forgot(api, ANNA)
    await postman.deliver()
    assert len(postman.smtp.mails_to(ANNA)) == 3


@pytest.mark.parametrize(
    "emails",
    [
        [f"bob+{number}@gmail.com" for number in range(6)],
        ["bob@gmail.com", "b.ob@gmail.com", "bo.b+x@googlemail.com", "B.O.B@GOOGLEMAIL.com"],
        ["bob@example.com", "bob+x@example.com", "BOB+y+z@example.com"],
    ],
)
async def test_addresses_of_one_mailbox_count_together(
    api: Api, postman: Postman, emails: list[str]
) -> None:
    for email in emails:
        assert (await api.register(email)).status == 201
    await api.register("b.ob@example.org")  # whose mailbox is another
    assert len(await postman.deliver()) == 2 + 1
    for email in emails:
        await forgot(api, email)
    assert len(await postman.deliver()) == 1


async def test_the_windows_slide(api: Api, postman: Postman) -> None:
    """A mail counts for an hour from when it was sent, not until a full hour ends."""
    await api.register(ANNA)
    assert len(await postman.deliver()) == 1
    sent = {}
    for minute in (40, 50, 61, 90, 101):
        api.clock.ahead = timedelta(minutes=minute)
        await resend(api, ANNA)
        sent[minute] = len(await postman.deliver())
    assert sent == {40: 1, 50: 0, 61: 1, 90: 0, 101: 1}


async def test_a_mailbox_full_of_other_mails_has_room_for_a_reset(
    api: Api, postman: Postman
) -> None:
    """And of notices, which are always sent: who changes passwords to that end keeps nobody out."""
    person = await api.new_person(ANNA)
    for _ in range(4):
        await resend(api, ANNA)
    await postman.deliver()
    old, new = PASSWORD, NEW_PASSWORD
    for _ in range(4):
        body = {"current_password": old, "new_password": new}
        assert (await api.post("/auth/password/change", body, by=person)).status == 204
        old, new = new, old
    assert len(await postman.deliver()) == 4
    await forgot(api, ANNA)
    [mail] = await postman.deliver()
    assert "Reset" in mail.message["Subject"]
    await forgot(api, ANNA)
    assert await postman.deliver() == []


async def test_notices_count(api: Api, postman: Postman) -> None:
    person = await api.new_person(ANNA)
    assert len(await postman.deliver()) == 1
    old, new = PASSWORD, NEW_PASSWORD
    for _ in range(2):
        body = {"current_password": old, "new_password": new}
        assert (await api.post("/auth/password/change", body, by=person)).status == 204
        old, new = new, old
    assert len(await postman.deliver()) == 2
    await resend(api, ANNA)
    assert await postman.deliver() == []


async def test_resets_go_before_what_has_not_waited_for_an_hour(api: Api, postman: Postman) -> None:
    await api.register("old@example.com")
    api.clock.ahead += RESET_HEAD_START + timedelta(seconds=1)
    for number in range(5):
        await api.register(f"junk{number}@example.com")
    await forgot(api, "junk4@example.com")
    await forgot(api, "junk3@example.com")
    sent = [mail.rcpt_tos[0].partition("@")[0] for mail in await postman.deliver()]
    assert sent == ["old", "junk4", "junk3", "junk0", "junk1", "junk2", "junk3", "junk4"]


async def test_a_try_that_fails_does_not_count(
    api: Api, postman: Postman, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the fourth one would find that its mailbox has had enough."""
    monkeypatch.setattr("service.providers.circuit_breaker.OPEN_SECONDS", 0)
    failing = [refuse("450 4.2.1 Try again later")] * 4
    postman.smtp.play(*failing, accept)
    await api.register(ANNA)
    for _ in range(5):
        api.clock.ahead += timedelta(seconds=10)
        try:
            await postman.deliver()
        except Exception as error:  # noqa: BLE001  # the worker would wait now
            logging.getLogger(__name__).info("not yet: %r", error)
    assert len(postman.smtp.mails_to(ANNA)) == 1
    await resend(api, ANNA)
    [mail] = await postman.deliver()
    assert await database.fetchval("SELECT cardinality(sent_at) FROM mailboxes") == 2
    # Of those that were not sent no token is left.
    assert await database.fetchval("SELECT count(*) FROM mail_tokens") == 2
    assert (await confirm(api, token_in(mail))).status == 204


async def test_a_mail_that_is_refused_for_good_does_not_count(api: Api, postman: Postman) -> None:
    await api.register(ANNA)
    postman.smtp.play(refuse("550 5.1.1 No such user"), accept)
    for _ in range(4):
        await resend(api, ANNA)
    await postman.deliver()
    assert len(postman.smtp.mails_to(ANNA)) == 2


async def test_a_mail_that_is_not_sent_leaves_no_token(
    api: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    for _ in range(6):
        await api.register(ANNA)
        await resend(api, ANNA)
    await postman.deliver()
    assert await database.fetchval("SELECT count(*) FROM mail_tokens") == 2
    assert await database.fetchval("SELECT count(*) FROM jobs") == 0


async def test_workers_in_parallel_send_no_more_than_one_alone(
    api: Api, settings: Settings, smtp: SmtpServer
) -> None:
    await api.register(ANNA)
    for _ in range(10):
        await resend(api, ANNA)
        await forgot(api, ANNA)
    postmen = [Postman.of(api, settings, smtp) for _ in range(8)]
    await asyncio.gather(*(postman.deliver() for postman in postmen))
    assert len(smtp.mails_to(ANNA)) == MOST_MAILS_AN_HOUR


async def test_the_table_names_nobody_and_is_tidied_up(
    api: Api, postman: Postman, database: asyncpg.Connection
) -> None:
    await api.register(ANNA)
    await postman.deliver()
    [row] = await database.fetch("SELECT mailbox_hash, m::text AS row FROM mailboxes m")
    assert len(row["mailbox_hash"]) == 32
    assert "anna" not in row["row"]
    api.clock.ahead += timedelta(hours=23, minutes=59)
    await Housekeeping(api.app[SERVICES].database, api.clock).tidy_up()
    assert await database.fetchval("SELECT count(*) FROM mailboxes") == 1
    api.clock.ahead += timedelta(minutes=1)
    await Housekeeping(api.app[SERVICES].database, api.clock).tidy_up()
    assert await database.fetchval("SELECT count(*) FROM mailboxes") == 0


async def test_erasing_the_account_does_not_empty_the_mailbox(api: Api, postman: Postman) -> None:
    """Otherwise one who erases and registers again and again fills it."""
    for _ in range(5):
        await register_anew(api, ANNA)
        await postman.deliver()
        person = await api.signed_in(ANNA)
        await api.delete("/users/me", {"password": PASSWORD}, by=person)
    assert len(postman.smtp.mails_to(ANNA)) == 2
