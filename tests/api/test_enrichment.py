"""What a data provider knows about a user: fetched behind the answer, shown to few, erased."""

import json
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta

import asyncpg
import pytest

from service.providers import circuit_breaker
from service.settings.settings import read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.factories import PASSWORD, Api, Person, running
from tests.stand_ins import scripted
from tests.stand_ins.clearbit import Clearbit
from tests.stand_ins.hunter import TEST_KEY, Hunter
from tests.stand_ins.scripted import Step, as_usual, changed, document, status
from tests.waiting import until

ANNA = "anna@example.com"
Provider = Hunter | Clearbit

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture(params=["clearbit", "hunter"])
def provider(request: pytest.FixtureRequest, hunter: Hunter, clearbit: Clearbit) -> Provider:
    return hunter if request.param == "hunter" else clearbit


@pytest.fixture
async def api(
    environment: dict[str, str], provider: Provider, database: asyncpg.Connection, redis: object
) -> AsyncIterator[Api]:
    settings = read_settings(
        {
            **environment,
            "ENRICHMENT_PROVIDER": "hunter" if isinstance(provider, Hunter) else "clearbit",
            "ENRICHMENT_API_KEY": provider.key,
            "ENRICHMENT_URL": provider.url,
        }
    )
    async with running(settings) as api:
        yield api


async def enriched(
    api: Api, database: asyncpg.Connection, clock_ahead: timedelta = timedelta()
) -> Person:
    """Register somebody, and wait until nothing is left to do."""
    await api.register(ANNA)
    await no_jobs(database, api.clock, clock_ahead)
    return await api.signed_in(ANNA)


async def test_it_is_shown_to_the_user_and_to_admins_alone(
    api: Api, provider: Provider, database: asyncpg.Connection, admin: Person
) -> None:
    anna = await enriched(api, database)
    own = await api.get("/users/me/enrichment", by=anna)
    assert own.status == 200
    shown = own.json()
    assert set(shown) == {"person", "company", "fetched_at", "source"}
    assert shown["person"]["email"] == ANNA
    assert shown["company"]["name"]
    assert shown["source"] == ("hunter" if isinstance(provider, Hunter) else "clearbit")
    path = f"/admin/users/{anna.user_id}/enrichment"
    assert (await api.get(path, by=admin)).json() == shown
    bert = await api.new_person("bert@example.com")
    assert_problem(await api.get(path, by=bert), 403, "insufficient-scope")
    assert "person" not in (await api.get("/users/me", by=anna)).json()
    for asked in provider.requests:
        assert provider.key not in str(asked.query)


NOTHING: Mapping[str, Step] = {
    "404": status(404),
    "422": status(422),
    "451": status(451),
    "null for both": scripted.null_leaves,
    "null": document(None),
    "a list": document([1, 2]),
    "texts": document({"person": "x", "company": 5, "data": {"person": [], "company": ""}}),
}


@pytest.mark.parametrize("step", NOTHING.values(), ids=NOTHING)
async def test_where_nothing_is_known_there_is_nothing(
    api: Api, provider: Provider, database: asyncpg.Connection, step: Step
) -> None:
    provider.finder.play(step)
    anna = await enriched(api, database)
    answer = await api.get("/users/me/enrichment", by=anna)
    if step is scripted.null_leaves:  # then the members are there, and null
        assert answer.status == 200
        assert answer.json()["person"]["email"] is None
    else:
        assert_problem(answer, 404, "enrichment-not-found")
    assert len(provider.requests) == 1


GOES_WRONG: Mapping[str, list[Step]] = {
    "403": [status(403)],
    "500": [status(500)] * 7,
    "reset": [scripted.reset],
    "truncated": [scripted.truncated],
    "a page": [scripted.html],
    "10 MB": [scripted.huge],
    "brackets without end": [scripted.nested(10_000)],
    "no HTTP": [scripted.garbage],
}


@pytest.mark.parametrize("steps", GOES_WRONG.values(), ids=GOES_WRONG)
async def test_what_goes_wrong_is_tried_again(
    api: Api, provider: Provider, database: asyncpg.Connection, steps: list[Step]
) -> None:
    provider.finder.play(*steps, as_usual)
    anna = await enriched(api, database)
    assert (await api.get("/users/me/enrichment", by=anna)).status == 200
    assert len(provider.requests) == len(steps) + 1


async def test_too_many_calls_mean_later_to_clearbit_and_no_more_to_hunter(
    api: Api, provider: Provider, database: asyncpg.Connection
) -> None:
    """429 is a limit for each minute there, and the month's quota here."""
    provider.finder.play(status(429), as_usual)
    anna = await enriched(api, database)
    found = (await api.get("/users/me/enrichment", by=anna)).status
    assert found == (404 if isinstance(provider, Hunter) else 200)


async def test_an_unpaid_bill_is_mended_by_operators(
    api: Api, provider: Provider, database: asyncpg.Connection
) -> None:
    """402 is Clearbit's; Hunter has no such answer, and means nothing by it."""
    provider.finder.play(document({}, code=402), as_usual)
    anna = await enriched(api, database)
    found = (await api.get("/users/me/enrichment", by=anna)).status
    assert found == (404 if isinstance(provider, Hunter) else 200)


async def test_who_is_being_looked_up_is_asked_about_again(
    api: Api, provider: Provider, database: asyncpg.Connection
) -> None:
    provider.finder.play(status(202), status(202), as_usual)
    anna = await enriched(api, database, timedelta(seconds=30))
    assert (await api.get("/users/me/enrichment", by=anna)).status == 200
    assert len(provider.requests) == 3


async def test_who_is_never_found_is_given_up(
    api: Api, provider: Provider, database: asyncpg.Connection
) -> None:
    provider.finder.play(status(202))
    anna = await enriched(api, database, timedelta(minutes=1))
    assert (await api.get("/users/me/enrichment", by=anna)).status == 404
    assert len(provider.requests) == 4


async def test_texts_from_outside_are_cleaned(
    api: Api, provider: Provider, database: asyncpg.Connection
) -> None:
    def poison(body: dict[str, object]) -> object:
        members = {
            "name": {"fullName": "An\x00na\x1b[31m \u202eevil\ud800"},
            "bio": "x" * 100_0 * 3,
            "\x00": 1,
            "k" * 500: 1,
            "deep": [[[[[[[["x"]]]]]]]],
            "members": {f"name{number}": number for number in range(1000)},
            "deeper": {"a": {"a": {"a": {"a": {"a": {"a": "x"}}}}}},
            "many": list(range(1000)),
            "number": 1e400,
            "large": 10**30,
        }
        both = {"person": members, "company": {"name": "<script>alert(1)</script>"}}
        return {"data": both, **both}

    provider.finder.play(changed(poison))
    anna = await enriched(api, database)
    answer = await api.get("/users/me/enrichment", by=anna)
    assert answer.status == 200, answer.body
    person = answer.json()["person"]
    assert person["name"]["fullName"].isprintable()
    assert person["name"]["fullName"].split() == ["An", "na", "[31m", "evil"]
    assert len(person["bio"]) == 2000
    assert set(person) == {"name", "bio", "deep", "deeper", "members", "many", "number", "large"}
    assert len(person["members"]) == 100
    assert json.dumps(person["deeper"]).count("{") < 6
    assert json.dumps(person["deep"]).count("[") < 8
    assert len(person["many"]) == 100
    assert person["number"] is None
    assert person["large"] is None
    assert answer.headers["Content-Type"] == "application/json"


async def test_it_is_erased_with_the_account(
    api: Api, provider: Provider, database: asyncpg.Connection
) -> None:
    anna = await enriched(api, database)
    assert await database.fetchval("SELECT count(*) FROM enrichments") == 1
    await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    assert await database.fetchval("SELECT count(*) FROM enrichments") == 0


async def test_it_is_not_stored_of_an_account_that_is_erased_meanwhile(
    api: Api, provider: Provider, database: asyncpg.Connection
) -> None:
    """Without the condition in UPSERT it is."""
    provider.hanging = True
    anna = await api.new_person(ANNA)
    await until(lambda: provider.in_flight)
    await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    provider.hanging = False
    await no_jobs(database)
    assert await database.fetchval("SELECT count(*) FROM enrichments") == 0


async def test_it_is_not_stored_of_an_email_that_is_another_by_now(
    api: Api, provider: Provider, database: asyncpg.Connection
) -> None:
    """Without the condition in UPSERT it is."""
    provider.hanging = True
    await api.register(ANNA)
    await until(lambda: provider.in_flight)
    await database.execute("UPDATE users SET email = 'new@x.org', email_key = 'new@x.org'")
    provider.hanging = False
    await no_jobs(database)
    assert await database.fetchval("SELECT count(*) FROM enrichments") == 0


async def test_it_is_off_until_a_key_is_set(
    environment: dict[str, str], hunter: Hunter, database: asyncpg.Connection, redis: object
) -> None:
    settings = read_settings(
        {**environment, "ENRICHMENT_URL": hunter.url, "HUNTER_URL": hunter.url}
    )
    async with running(settings) as api:
        anna = await api.new_person(ANNA)
        assert await database.fetchval("SELECT count(*) FROM jobs") == 0
        assert (await api.get("/users/me/enrichment", by=anna)).status == 404
    assert hunter.requests == []


async def test_that_one_provider_fails_holds_up_no_other(
    environment: dict[str, str],
    hunter: Hunter,
    clearbit: Clearbit,
    database: asyncpg.Connection,
    redis: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one circuit breaker for all it would."""
    monkeypatch.setattr(circuit_breaker, "OPEN_SECONDS", 60)
    both = {
        "HUNTER_API_KEY": TEST_KEY,
        "HUNTER_URL": hunter.url,
        "ENRICHMENT_PROVIDER": "clearbit",
        "ENRICHMENT_API_KEY": clearbit.key,
        "ENRICHMENT_URL": clearbit.url,
    }
    hunter.verifier.play(status(500))
    async with running(read_settings({**environment, **both})) as api:
        hunter.hanging = True
        await api.register(ANNA)
        await until(lambda: database.fetchval("SELECT count(*) FROM enrichments"))
        hunter.hanging = False

        async def given_up() -> bool:
            metrics = (await api.get("//metrics")).body.decode()
            return 'provider_circuit_breaker_open{provider="hunter"} 1.0' in metrics

        await until(given_up)
        await api.register("bert@example.com")
        await until(lambda: database.fetchval("SELECT count(*) = 2 FROM enrichments"))


async def test_the_key_of_verification_enriches_nobody(
    environment: dict[str, str], hunter: Hunter, database: asyncpg.Connection, redis: object
) -> None:
    settings = read_settings({**environment, "HUNTER_API_KEY": TEST_KEY, "HUNTER_URL": hunter.url})
    async with running(settings) as api:
        await api.register(ANNA)
        await no_jobs(database)
    assert [asked.path for asked in hunter.requests] == ["/v2/email-verifier"]
