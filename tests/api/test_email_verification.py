"""Verdicts on e-mails: each answer of Hunter's gives the documented one, and nobody is stopped."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from service.providers import circuit_breaker, http
from service.settings.settings import read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.api.mailing import confirm, mailed, token_in
from tests.factories import PASSWORD, Api, Person, new_email, running
from tests.stand_ins import scripted
from tests.stand_ins.hunter import TEST_KEY, VERDICTS, Hunter, verdict
from tests.stand_ins.scripted import Step, as_usual, document, status
from tests.stand_ins.smtp import SmtpServer

EMAIL = "carl@example.org"

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def hunter_environment(environment: dict[str, str], hunter: Hunter) -> dict[str, str]:
    return {**environment, "HUNTER_API_KEY": TEST_KEY, "HUNTER_URL": hunter.url}


@pytest.fixture
async def api(
    hunter_environment: dict[str, str], database: asyncpg.Connection, redis: object
) -> AsyncIterator[Api]:
    async with running(read_settings(hunter_environment)) as api:
        yield api


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
        async with asyncio.timeout(5):
            while len(hunter.requests) < polls or await database.fetchval(
                "SELECT payload -> 'polls' IS DISTINCT FROM to_jsonb($1::int) FROM jobs", polls
            ):
                await asyncio.sleep(0.02)
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
    hunter_environment: dict[str, str],
    hunter: Hunter,
    database: asyncpg.Connection,
    redis: object,
) -> None:
    settings = read_settings({**hunter_environment, "HUNTER_API_KEY": "wrong"})
    async with running(settings) as api:
        await api.register(EMAIL)
        async with asyncio.timeout(10):
            while not hunter.requests:
                await asyncio.sleep(0.02)
    async with running(read_settings(hunter_environment)) as api:
        api.clock.ahead += timedelta(minutes=1)
        async with asyncio.timeout(10):
            while await database.fetchval("SELECT count(*) FROM jobs"):
                await asyncio.sleep(0.02)
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
        async with asyncio.timeout(10):
            while await database.fetchval("SELECT email_verdict FROM users") != "valid":
                await asyncio.sleep(0.02)
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
        async with asyncio.timeout(10):
            while not (mails := smtp.mails_to("carl@example.com")):
                await asyncio.sleep(0.02)
        token = mails[0].links[0].partition("#token=")[2]
        assert (await api.post("/auth/email/confirm", {"token": token})).status == 204
        async with asyncio.timeout(10):
            while await database.fetchval("SELECT email_verdict FROM users") is None:
                await asyncio.sleep(0.02)
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
        async with asyncio.timeout(10):
            while await database.fetchval("SELECT email_verdict FROM users") is None:
                await asyncio.sleep(0.02)
        assert (await api.get("/users/me", by=carl)).status == 200
        assert (await api.log_in(EMAIL)).status == 200


async def test_a_verdict_is_of_the_email_that_was_asked_about(
    api: Api, hunter: Hunter, database: asyncpg.Connection
) -> None:
    """Without the condition in SET_VERIFICATION the new e-mail would get the old one's."""
    hunter.verifier.play(verdict("invalid"))
    hunter.hanging = True
    await api.register(EMAIL)
    async with asyncio.timeout(10):
        while not hunter.in_flight:
            await asyncio.sleep(0.02)
    await database.execute("UPDATE users SET email = 'new@x.org', email_key = 'new@x.org'")
    hunter.hanging = False
    async with asyncio.timeout(10):
        while await database.fetchval("SELECT count(*) FROM jobs"):
            await asyncio.sleep(0.02)
    assert await database.fetchval("SELECT email_verdict FROM users") is None


async def test_an_erased_account_is_not_asked_about(
    hunter_environment: dict[str, str],
    hunter: Hunter,
    database: asyncpg.Connection,
    redis: object,
) -> None:
    async with running(read_settings({**hunter_environment, "SERVE_JOBS": "off"})) as api:
        carl = await api.new_person(EMAIL)
        await api.delete("/users/me", {"password": PASSWORD}, by=carl)
    async with running(read_settings(hunter_environment)):
        async with asyncio.timeout(10):
            while await database.fetchval("SELECT count(*) FROM jobs"):
                await asyncio.sleep(0.02)
    assert hunter.requests == []


# --- Asking about any e-mail.


async def ask(api: Api, email: str, by: Person) -> Any:
    answer = await api.get(f"/email-verification/{email}", by=by)
    assert answer.status == 200, answer.body
    return answer.json()


@pytest.fixture
async def carl(api: Api, hunter: Hunter, database: asyncpg.Connection) -> Person:
    carl = await api.new_person()
    async with asyncio.timeout(10):
        while await database.fetchval("SELECT count(*) FROM jobs"):
            await asyncio.sleep(0.02)
    hunter.requests.clear()
    return carl


async def test_an_email_is_verified_for_a_user(api: Api, hunter: Hunter, carl: Person) -> None:
    hunter.verifier.play(verdict("webmail"))
    answer = await ask(api, "Someone@Example.ORG", carl)
    assert set(answer) == {"email", "verdict", "checked_at", "source"}
    assert (answer["email"], answer["verdict"]) == ("Someone@Example.ORG", "webmail")
    assert answer["source"] == "hunter"
    assert answer["checked_at"].endswith("Z")
    # Kept for a day: each is paid for.
    hunter.verifier.play(verdict("invalid"))
    again = await ask(api, "someone@example.org", carl)
    assert (again["verdict"], again["checked_at"]) == ("webmail", answer["checked_at"])
    assert len(hunter.requests) == 1
    api.clock.ahead += timedelta(days=1)
    carl = await api.signed_in(carl.email)
    assert (await ask(api, "someone@example.org", carl))["verdict"] == "invalid"


@pytest.mark.parametrize(
    ("email", "expected"),
    [
        ("nonsense", "invalid"),
        ("a@b", "invalid"),
        ("%00@example.org", "invalid"),
        ("x@mailinator.com", "disposable"),
        ("a{b}@mailinator.com", "disposable"),
        ("%7Ba%2Fb%7D@mailinator.com", "disposable"),
        ("x@some.where.mailinator.com", "disposable"),
    ],
)
async def test_what_can_be_told_here_is_not_asked_elsewhere(
    api: Api, hunter: Hunter, carl: Person, email: str, expected: str
) -> None:
    answer = await ask(api, email, carl)
    assert (answer["verdict"], answer["source"]) == (expected, "local")
    assert hunter.requests == []


@pytest.mark.parametrize(
    "step",
    [
        *map(status, (202, 403, 429, 451, 500)),
        scripted.huge,
        scripted.html,
        scripted.reset,
        scripted.nested(10_000),
    ],
)
async def test_what_hunter_does_not_tell_is_unknown(
    api: Api, hunter: Hunter, carl: Person, step: Step
) -> None:
    hunter.verifier.play(step)
    answer = await ask(api, "someone@example.org", carl)
    assert (answer["verdict"], answer["source"]) == ("unknown", "local")
    assert len(hunter.requests) == 1  # each may be paid for


async def test_a_service_that_fails_again_and_again_is_left_alone(
    api: Api, hunter: Hunter, carl: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "OPEN_SECONDS", 0.5)
    hunter.verifier.play(status(500))
    for _ in range(circuit_breaker.FAILURES + 5):
        assert (await ask(api, new_email(), carl))["verdict"] == "unknown"
    assert len(hunter.requests) == circuit_breaker.FAILURES
    metrics = (await api.get("//metrics")).body.decode()
    assert 'provider_circuit_breaker_open{provider="hunter"} 1.0' in metrics
    hunter.verifier.play()
    await asyncio.sleep(0.6)
    answers = [(await ask(api, new_email(), carl))["verdict"] for _ in range(3)]
    assert answers == ["valid"] * 3
    metrics = (await api.get("//metrics")).body.decode()
    assert 'provider_circuit_breaker_open{provider="hunter"} 0.0' in metrics


async def test_one_call_finds_out_whether_a_service_is_back(
    api: Api, hunter: Hunter, carl: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "OPEN_SECONDS", 0.3)
    hunter.verifier.play(status(500))
    for _ in range(circuit_breaker.FAILURES):
        await ask(api, new_email(), carl)
    hunter.verifier.play()
    hunter.hanging = True
    await asyncio.sleep(0.4)
    asking = [asyncio.create_task(ask(api, new_email(), carl)) for _ in range(5)]
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.05)
    assert hunter.in_flight == 1
    hunter.hanging = False
    verdicts = [answer["verdict"] for answer in await asyncio.gather(*asking)]
    assert sorted(verdicts) == [*["unknown"] * 4, "valid"]


async def test_a_cookie_is_not_sent_back(
    hunter_environment: dict[str, str], hunter: Hunter, database: object, redis: object
) -> None:
    async def with_cookie(call: scripted.Call) -> web.StreamResponse:
        answer = await as_usual(call)
        answer.headers["Set-Cookie"] = "who=somebody; Path=/"
        return answer

    hunter.verifier.play(with_cookie)
    # aiohttp keeps cookies of names, not of addresses.
    named = {**hunter_environment, "HUNTER_URL": hunter.url.replace("127.0.0.1", "localhost")}
    async with running(read_settings(named)) as api:
        carl = await api.new_person()
        for _ in range(2):
            assert (await ask(api, new_email(), carl))["verdict"] == "valid"
    assert len(hunter.requests) >= 2
    assert not any("Cookie" in request.headers for request in hunter.requests)


@pytest.mark.parametrize("code", [300, 302, 304])
async def test_what_stands_in_a_redirect_is_not_believed(
    api: Api, hunter: Hunter, carl: Person, code: int
) -> None:
    hunter.verifier.play(document({"data": {"status": "valid"}}, code=code))
    assert (await ask(api, new_email(), carl))["verdict"] == "unknown"


async def test_a_verdict_is_erased_with_the_account(
    api: Api, hunter: Hunter, database: asyncpg.Connection
) -> None:
    assert await verified(api, database) == "valid"
    carl = await api.signed_in(EMAIL)
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=carl)).status == 204
    [row] = await database.fetch(
        "SELECT email_verdict, email_verdict_source, email_checked_at FROM users"
    )
    assert set(row) == {None}


async def test_without_hunter_the_verdict_is_unknown(
    environment: dict[str, str], database: object, redis: object
) -> None:
    async with running(read_settings(environment)) as api:
        anna = await api.new_person()
        assert (await ask(api, "someone@example.org", anna))["verdict"] == "unknown"


async def test_verifying_is_limited(
    environment: dict[str, str], database: object, redis: object
) -> None:
    settings = read_settings({**environment, "RATE_LIMIT_VERIFICATION": "2/minute"})
    async with running(settings) as api:
        anna = await api.new_person()
        for _ in range(2):
            await ask(api, "someone@example.org", anna)
        answer = await api.get("/email-verification/someone@example.org", by=anna)
        assert_problem(answer, 429, "too-many-requests")
        assert "Retry-After" in answer.headers
