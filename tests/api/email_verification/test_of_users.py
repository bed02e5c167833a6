"""Verdicts on the email addresses of users: each answer of Hunter's gives the documented one."""

from collections.abc import Mapping
from datetime import timedelta

import asyncpg
import pytest

from service.providers import http
from service.settings.settings import read_settings
from tests.api.conftest import no_jobs
from tests.api.email_verification.conftest import EMAIL
from tests.api.mailing import confirm, mailed, token_in
from tests.factories import PASSWORD, Api, running
from tests.stand_ins import scripted
from tests.stand_ins.hunter import TEST_KEY, VERDICTS, Hunter, verdict
from tests.stand_ins.scripted import Step, as_usual, document, status
from tests.stand_ins.smtp import SmtpServer
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("impatient")


async def verified(
    api: Api, database: asyncpg.Connection, clock_ahead: timedelta = timedelta()
) -> str | None:
    """Register somebody; return the verdict when nothing is left to do, else None after a while."""
    registered = await api.register(EMAIL)
    assert registered.status == 201
    await no_jobs(database, api.clock, clock_ahead)
    found: str | None = await database.fetchval(
        "SELECT email_verdict FROM users WHERE email = $1", EMAIL
    )
    return found


@pytest.mark.parametrize("word", VERDICTS)
async def test_hunters_status_is_the_verdict(
    api: Api, hunter: Hunter, database: asyncpg.Connection, word: str
) -> None:
    # The older words say something else: they are not listened to.
    hunter.verifier.play(verdict(word, result="deliverable", score=100, disposable=True))
    assert await verified(api, database) == word
    [asked] = hunter.requests
    assert asked.headers["X-API-KEY"] == TEST_KEY
    assert TEST_KEY not in str(asked.query)
    row = await database.fetchrow("SELECT * FROM users WHERE email = $1", EMAIL)
    assert row is not None
    assert row["email_verdict_source"] == "hunter"
    assert abs(row["email_checked_at"] - row["created_at"]) < timedelta(seconds=10)


SAID_AT_ONCE: Mapping[str, tuple[Step, str]] = {
    "429: the month's credits are gone": (status(429), "unknown"),
    "451: the person does not want to be processed": (status(451), "unknown"),
    "204, empty": (scripted.content(b"", code=204), "unknown"),
    "400": (status(400), "unknown"),
    "404": (status(404), "unknown"),
    "422": (status(422), "unknown"),
    "a verdict of another kind": (verdict("splendid"), "unknown"),
    "null leaves": (scripted.null_leaves, "unknown"),
    "null for all": (document(None), "unknown"),
    "null for data": (scripted.without("data"), "unknown"),
    "a list": (document([]), "unknown"),
    "a list for data": (document({"data": ["valid"]}), "unknown"),
    "a number for the status": (document({"data": {"status": 5}}), "unknown"),
    "an object for the status": (document({"data": {"status": {"valid": True}}}), "unknown"),
    "a status with NUL": (verdict("valid\x00"), "unknown"),
}


@pytest.mark.parametrize(("step", "expected"), SAID_AT_ONCE.values(), ids=SAID_AT_ONCE)
async def test_what_hunter_says_for_good_is_not_asked_again(
    api: Api, hunter: Hunter, database: asyncpg.Connection, step: Step, expected: str
) -> None:
    hunter.verifier.play(step)
    assert await verified(api, database) == expected
    assert len(hunter.requests) == 1


GOES_WRONG: Mapping[str, list[Step]] = {
    "403: too many a second": [status(403)],
    "500": [status(500)],
    "500 many times": [status(500)] * 8,
    "a connection reset": [scripted.reset],
    "truncated JSON": [scripted.truncated],
    "an answer cut off": [scripted.cut_off],
    "no HTTP": [scripted.garbage],
    "a page": [scripted.html],
    "10 MB": [scripted.huge],
    "brackets without end": [scripted.nested(10_000)],
}


@pytest.mark.parametrize("steps", GOES_WRONG.values(), ids=GOES_WRONG)
async def test_what_goes_wrong_is_tried_again(
    api: Api, hunter: Hunter, database: asyncpg.Connection, steps: list[Step]
) -> None:
    hunter.verifier.play(*steps, as_usual)
    assert await verified(api, database) == "valid"
    assert len(hunter.requests) == len(steps) + 1


async def test_a_hang_ends_after_three_seconds(
    hunter_environment: dict[str, str],
    hunter: Hunter,
    database: asyncpg.Connection,
    redis: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert http.TOTAL_SECONDS == 3
    monkeypatch.setattr(http, "TOTAL_SECONDS", 0.3)
    async with running(read_settings(hunter_environment)) as api:
        for step in (scripted.hang, scripted.slow(0.05)):
            await database.execute("DELETE FROM security_events")
            await database.execute("DELETE FROM users")
            hunter.requests.clear()
            hunter.verifier.play(step, as_usual)
            assert await verified(api, database) == "valid"
            assert len(hunter.requests) == 2
            hunter.release()


async def test_a_redirect_is_not_followed(
    api: Api, hunter: Hunter, database: asyncpg.Connection
) -> None:
    async with Hunter().serving() as elsewhere:
        hunter.verifier.play(scripted.redirect(f"{elsewhere.url}/latest/meta-data"), as_usual)
        assert await verified(api, database) == "valid"
        assert elsewhere.requests == []


async def test_while_hunter_is_still_asking_it_is_asked_again(
    api: Api, hunter: Hunter, database: asyncpg.Connection
) -> None:
    hunter.verifier.play(status(202), status(202), status(202), verdict("accept_all"))
    assert await verified(api, database, timedelta(seconds=5)) == "accept_all"
    assert len(hunter.requests) == 4


async def test_failures_before_cost_none_of_the_polls(
    api: Api, hunter: Hunter, database: asyncpg.Connection
) -> None:
    """Else an hour without Hunter would make verdicts of afterwards unknown."""
    hunter.verifier.play(
        *[status(500)] * 4, status(202), status(403), status(202), verdict("webmail")
    )
    assert await verified(api, database, timedelta(seconds=5)) == "webmail"
    assert len(hunter.requests) == 8


async def test_each_poll_comes_three_times_later_than_the_one_before(
    api: Api, hunter: Hunter, database: asyncpg.Connection
) -> None:
    hunter.verifier.play(status(202))
    await api.register(EMAIL)
    for polls, seconds in enumerate((5, 15, 45), start=1):
        polled = "SELECT payload -> 'polls' = to_jsonb($1::int) FROM jobs"
        await until(lambda: database.fetchval(polled, polls))  # noqa: B023
        assert len(hunter.requests) == polls
        due_at = await database.fetchval("SELECT due_at FROM jobs")
        assert abs((due_at - api.clock()).total_seconds() - seconds) < 2
        api.clock.ahead += timedelta(seconds=seconds)


async def test_what_hunter_never_finds_out_is_unknown(
    api: Api, hunter: Hunter, database: asyncpg.Connection
) -> None:
    hunter.verifier.play(status(202))
    assert await verified(api, database, timedelta(seconds=5)) == "unknown"
    assert len(hunter.requests) == 4


async def test_a_wrong_key_is_mended_by_operators_and_loses_nothing(
    hunter_environment: dict[str, str], hunter: Hunter, database: asyncpg.Connection, redis: object
) -> None:
    settings = read_settings({**hunter_environment, "HUNTER_API_KEY": "wrong"})
    async with running(settings) as api:
        await api.register(EMAIL)
        await until(lambda: hunter.requests)
    async with running(read_settings(hunter_environment)) as api:
        api.clock.ahead += timedelta(minutes=1)
        await no_jobs(database)
    assert await database.fetchval("SELECT email_verdict FROM users") == "valid"


async def test_a_disposable_email_is_known_here_and_not_asked_about(
    api: Api, hunter: Hunter, database: asyncpg.Connection
) -> None:
    """Each question is paid for."""
    assert (await api.register("carl@mailinator.com")).status == 201
    assert await database.fetchval("SELECT email_verdict FROM users") == "disposable"
    assert await database.fetchval("SELECT count(*) FROM jobs") == 0
    assert hunter.requests == []


async def test_a_good_verdict_does_not_undo_that_an_email_has_to_be_confirmed(
    hunter_environment: dict[str, str],
    mail_environment: dict[str, str],
    hunter: Hunter,
    database: asyncpg.Connection,
    redis: object,
) -> None:
    lax = {**mail_environment, **hunter_environment, "SERVE_JOBS": "off"}
    async with running(read_settings(lax)) as api:
        assert (await api.register(EMAIL)).status == 201
    strict = {**mail_environment, **hunter_environment, "EMAIL_CONFIRMATION": "required"}
    async with running(read_settings(strict)) as api:
        await until(lambda: database.fetchval("SELECT email_verdict = 'valid' FROM users"))
        assert (await api.log_in(EMAIL)).status == 401


async def test_a_claim_is_asked_about_once_it_is_confirmed(
    hunter_environment: dict[str, str],
    mail_environment: dict[str, str],
    hunter: Hunter,
    smtp: SmtpServer,
    database: asyncpg.Connection,
    redis: object,
) -> None:
    """Each question is paid for, and anybody can claim any address."""
    strict = {**mail_environment, **hunter_environment, "EMAIL_CONFIRMATION": "required"}
    async with running(read_settings(strict)) as api:
        await api.register(EMAIL)
        [mail] = await mailed(smtp, EMAIL, "Confirm")
        await no_jobs(database)
        assert hunter.requests == []
        assert (await confirm(api, token_in(mail))).status == 204
        await no_jobs(database)
    assert await database.fetchval("SELECT email_verdict FROM users") == "valid"
    assert len(hunter.requests) == 1


async def test_a_changed_email_is_asked_about(
    hunter_environment: dict[str, str],
    mail_environment: dict[str, str],
    hunter: Hunter,
    smtp: SmtpServer,
    database: asyncpg.Connection,
    redis: object,
) -> None:
    async with running(read_settings({**mail_environment, **hunter_environment})) as api:
        carl = await api.new_person(EMAIL)
        body = {"new_email": "carl@example.com", "password": PASSWORD}
        await api.post("/auth/email/change", body, by=carl)
        mails = await until(lambda: smtp.mails_to("carl@example.com"))
        assert (await confirm(api, token_in(mails[0]))).status == 204
        await until(lambda: database.fetchval("SELECT email_verdict FROM users"))
    asked = [request.query["email"] for request in hunter.requests]
    assert asked == [EMAIL, "carl@example.com"]


@pytest.mark.parametrize("word", VERDICTS)
async def test_only_a_bad_verdict_asks_for_confirmation(
    hunter_environment: dict[str, str],
    mail_environment: dict[str, str],
    hunter: Hunter,
    database: asyncpg.Connection,
    redis: object,
    word: str,
) -> None:
    hunter.verifier.play(verdict(word))
    async with running(read_settings({**mail_environment, **hunter_environment})) as api:
        assert await verified(api, database) == word
        bad = word in {"invalid", "disposable"}
        assert (await api.log_in(EMAIL)).status == (401 if bad else 200)


async def test_without_a_mail_server_a_bad_verdict_stops_nobody(
    api: Api, hunter: Hunter, database: asyncpg.Connection
) -> None:
    """Nobody could confirm."""
    hunter.verifier.play(verdict("invalid"))
    assert await verified(api, database) == "invalid"
    assert (await api.log_in(EMAIL)).status == 200


async def test_a_verdict_ends_no_session_and_no_confirmed_account(
    hunter_environment: dict[str, str],
    mail_environment: dict[str, str],
    hunter: Hunter,
    database: asyncpg.Connection,
    redis: object,
) -> None:
    hunter.verifier.play(verdict("invalid"))
    hunter.hanging = True
    async with running(read_settings({**mail_environment, **hunter_environment})) as api:
        carl = await api.new_person(EMAIL)
        await database.execute("UPDATE users SET email_confirmed_at = now()")
        hunter.hanging = False
        await until(lambda: database.fetchval("SELECT email_verdict FROM users"))
        assert (await api.get("/users/me", by=carl)).status == 200
        assert (await api.log_in(EMAIL)).status == 200


async def test_a_verdict_is_of_the_email_that_was_asked_about(
    api: Api, hunter: Hunter, database: asyncpg.Connection
) -> None:
    """Without the condition in SET_VERIFICATION the new address would get the old one's."""
    hunter.verifier.play(verdict("invalid"))
    hunter.hanging = True
    await api.register(EMAIL)
    await until(lambda: hunter.in_flight)
    await database.execute("UPDATE users SET email = 'new@x.org', email_key = 'new@x.org'")
    hunter.hanging = False
    await no_jobs(database)
    assert await database.fetchval("SELECT email_verdict FROM users") is None


async def test_an_erased_account_is_not_asked_about(
    hunter_environment: dict[str, str], hunter: Hunter, database: asyncpg.Connection, redis: object
) -> None:
    async with running(read_settings({**hunter_environment, "SERVE_JOBS": "off"})) as api:
        carl = await api.new_person(EMAIL)
        await api.delete("/users/me", {"password": PASSWORD}, by=carl)
    async with running(read_settings(hunter_environment)):
        await no_jobs(database)
    assert hunter.requests == []
