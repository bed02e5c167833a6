"""Verdicts on any email address that a user asks about."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from service.providers import circuit_breaker
from service.settings.settings import read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.api.email_verification.conftest import EMAIL
from tests.api.email_verification.test_of_users import verified
from tests.factories import PASSWORD, Api, Person, new_email, running
from tests.stand_ins import scripted
from tests.stand_ins.hunter import Hunter, verdict
from tests.stand_ins.scripted import Step, as_usual, document, status
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("impatient")


async def ask(api: Api, email: str, by: Person) -> Any:
    answer = await api.get(f"/email-verification/{email}", by=by)
    assert answer.status == 200, answer.body
    return answer.json()


@pytest.fixture
async def carl(api: Api, hunter: Hunter, database: asyncpg.Connection) -> Person:
    carl = await api.new_person()
    await no_jobs(database)
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

    async def tried_again() -> Any:
        return (await ask(api, new_email(), carl))["verdict"] == "valid"

    await until(tried_again)
    assert await tried_again()
    metrics = (await api.get("//metrics")).body.decode()
    assert 'provider_circuit_breaker_open{provider="hunter"} 0.0' in metrics


async def test_one_call_finds_out_whether_a_service_is_back(
    api: Api, hunter: Hunter, carl: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "OPEN_SECONDS", 0)
    hunter.verifier.play(status(500))
    for _ in range(circuit_breaker.FAILURES):
        await ask(api, new_email(), carl)
    hunter.verifier.play()
    hunter.hanging = True
    monkeypatch.setattr(circuit_breaker, "OPEN_SECONDS", 60)
    asking = [asyncio.create_task(ask(api, new_email(), carl)) for _ in range(5)]
    await until(lambda: hunter.in_flight == 1 and sum(task.done() for task in asking) == 4)
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
