"""Hunter's and Clearbit's stand-ins, judged by what is documented of the two."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.stand_ins import scripted
from tests.stand_ins.clearbit import Clearbit
from tests.stand_ins.hunter import VERDICTS, Finder, Hunter, verdict
from tests.stand_ins.scripted import (
    HUGE,
    StandIn,
    Step,
    as_usual,
    content,
    document,
    nested,
    redirect,
    status,
    without,
)
from tests.waiting import until

PATRICK = json.loads(
    """
{"data":{"status":"valid","result":"deliverable","_deprecation_notice":"Using result is deprecated,
 use status instead","score":100,"email":"patrick@stripe.com","regexp":true,"gibberish":false,
 "disposable":false,"webmail":false,"mx_records":true,"smtp_server":true,"smtp_check":true,
 "accept_all":false,"block":false,"sources":[{"domain":"beta.example","uri":"http://beta.example/p",
 "extracted_on":"2020-06-17","last_seen_on":"2020-06-17","still_on_page":true}]},
 "meta":{"params":{"email":"patrick@stripe.com"}}}
""".replace("\n", "")
)

PERSON = {
    *("id", "name", "email", "location", "timeZone", "utcOffset", "geo", "bio", "site", "avatar"),
    *("employment", "facebook", "github", "twitter", "linkedin", "fuzzy", "emailProvider"),
    "indexedAt",
}
COMPANY = {
    *("id", "name", "legalName", "domain", "domainAliases", "site", "category", "tags"),
    *("description", "foundedYear", "location", "geo", "logo", "metrics", "emailProvider"),
    *("type", "tech", "indexedAt"),
}
SHAPED = f"{Finder.path}?clearbit_format=true"


@dataclass(frozen=True)
class Seen:
    status: int
    headers: Any
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def get(
    stand_in: StandIn,
    path: str,
    email: str | None = "anna@example.com",
    key: str | None = None,
    seconds: float = 5,
) -> Seen:
    """Ask as the service would, with the right key unless another one is named."""
    headers = {"Authorization": f"Bearer {stand_in.key if key is None else key}"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(seconds)) as session,
        session.get(
            stand_in.url + path,
            params={} if email is None else {"email": email},
            headers=headers,
            allow_redirects=False,
        ) as response,
    ):
        return Seen(response.status, response.headers, await response.read())


async def verify(hunter: Hunter, email: str | None = "anna@example.com", **options: Any) -> Seen:
    return await get(hunter, hunter.verifier.path, email, **options)


async def find(clearbit: Clearbit, email: str | None = "anna@example.com", **options: Any) -> Seen:
    return await get(clearbit, clearbit.finder.path, email, **options)


@pytest.fixture
async def hunter() -> AsyncIterator[Hunter]:
    async with Hunter().serving() as stand_in:
        yield stand_in


@pytest.fixture
async def clearbit() -> AsyncIterator[Clearbit]:
    async with Clearbit().serving() as stand_in:
        yield stand_in


async def test_hunter_answers_the_documented_example(hunter: Hunter) -> None:
    seen = await verify(hunter, "patrick@stripe.com")
    assert (seen.status, seen.json()) == (200, PATRICK)


@pytest.mark.parametrize("expected", VERDICTS)
async def test_the_local_part_says_the_verdict(hunter: Hunter, expected: str) -> None:
    data = (await verify(hunter, f"{expected}.one@example.com")).json()["data"]
    assert data.keys() == PATRICK["data"].keys()
    assert data["status"] == expected
    assert (await verify(hunter, "blocked@example.com")).json()["data"]["block"]


async def test_hunter_takes_the_key_in_three_ways(hunter: Hunter) -> None:
    url = hunter.url + hunter.verifier.path
    async with aiohttp.ClientSession() as session:
        for headers, query in (
            ({"X-API-KEY": hunter.key}, {}),
            ({"Authorization": f"Bearer {hunter.key}"}, {}),
            ({}, {"api_key": hunter.key}),
        ):
            sent = {"email": "anna@example.com", **query}
            async with session.get(url, params=sent, headers=headers) as response:
                assert response.status == 200
        async with session.get(url, params={"email": "anna@example.com"}) as response:
            assert response.status == 401
    wrong = await verify(hunter, key="another")
    assert wrong.status == 401
    [error] = wrong.json()["errors"]
    assert (error.keys(), error["code"]) == ({"id", "code", "details"}, 401)


async def test_hunter_refuses_an_email_that_is_none(hunter: Hunter) -> None:
    hunter.verifier.play(status(500))
    missing = await verify(hunter, None)
    assert (missing.status, missing.json()["errors"][0]["id"]) == (400, "wrong_params")
    assert (await verify(hunter, "anna")).status == 400
    assert (await get(hunter, "/v2/account")).status == 404
    assert (await get(hunter, hunter.finder.path)).status == 400, "without clearbit_format"


async def test_hunter_finds_people_in_clearbits_shape(hunter: Hunter) -> None:
    found = (await get(hunter, SHAPED)).json()
    assert found.keys() == {"data", "meta"}
    assert found["data"]["person"].keys() == PERSON
    assert found["data"]["company"].keys() == COMPANY
    assert (await get(hunter, SHAPED, "nobody@example.com")).status == 404


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422, 429, 451, 500])
async def test_hunters_errors_have_its_envelope(hunter: Hunter, code: int) -> None:
    hunter.verifier.play(status(code))
    seen = await verify(hunter)
    assert seen.status == code
    [error] = seen.json()["errors"]
    assert (error.keys(), error["code"]) == ({"id", "code", "details"}, code)
    assert "Retry-After" not in seen.headers


async def test_clearbit_answers_the_documented_sample(clearbit: Clearbit) -> None:
    found = (await find(clearbit, "alex@clearbit.com")).json()
    assert found.keys() == {"person", "company"}
    assert found["person"].keys() == PERSON
    assert found["person"]["name"]["fullName"] == "Alex MacCaw"
    assert found["person"]["email"] == "alex@clearbit.com"
    assert found["company"].keys() == COMPANY
    assert found["company"]["domain"] == "clearbit.com"


async def test_clearbit_takes_the_key_as_user_or_as_token(clearbit: Clearbit) -> None:
    url = clearbit.url + clearbit.finder.path
    query = {"email": "anna@example.com"}
    async with aiohttp.ClientSession() as session:
        for key, expected in ((clearbit.key, 200), ("another", 401)):
            sent = {"Authorization": aiohttp.encode_basic_auth(key, "")}
            async with session.get(url, params=query, headers=sent) as response:
                assert response.status == expected
        async with session.get(url, params=query) as response:
            assert (await response.json())["error"]["type"] == "auth_required"
    refused = await find(clearbit, key="another")
    assert (refused.status, refused.json()["error"]["type"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("code", "expected"),
    [(401, "auth_required"), (404, "unknown_record"), (422, "email_invalid"), (429, "rate_limit")],
)
async def test_clearbits_errors_have_its_envelope(
    clearbit: Clearbit, code: int, expected: str
) -> None:
    clearbit.finder.play(status(code))
    seen = await find(clearbit)
    assert seen.status == code
    assert seen.json()["error"].keys() == {"type", "message"}
    assert seen.json()["error"]["type"] == expected
    assert "Retry-After" not in seen.headers
    assert (seen.headers["X-RateLimit-Remaining"] == "0") == (code == 429)
    assert int(seen.headers["X-RateLimit-Reset"]) > time.time()


async def test_clearbit_queues_with_nothing_in_the_body(clearbit: Clearbit) -> None:
    clearbit.finder.play(status(202), as_usual)
    queued = await find(clearbit)
    assert (queued.status, queued.body) == (202, b"")
    assert (await find(clearbit)).status == 200
    unknown = await find(clearbit, "nobody@example.com")
    assert (unknown.status, unknown.json()["error"]["type"]) == (404, "unknown_record")
    elsewhere = await get(clearbit, "/v1/people")
    assert (elsewhere.status, elsewhere.json()["error"]["type"]) == (404, "unknown_route")


async def test_a_script_is_played_to_its_last_step(hunter: Hunter) -> None:
    hunter.verifier.play(status(202), status(202), verdict("accept_all", score=None))
    assert [(await verify(hunter)).status for _ in range(4)] == [202, 202, 200, 200]
    assert (await verify(hunter)).json()["data"]["score"] is None
    hunter.verifier.play()
    assert (await verify(hunter)).json()["data"]["status"] == "valid"


async def test_a_script_is_played_to_one_email(hunter: Hunter) -> None:
    hunter.verifier.play(status(500))
    hunter.verifier.play(status(403), as_usual, to="bert@example.com")
    seen = [await verify(hunter, "bert@example.com"), await verify(hunter)]
    seen += [await verify(hunter, "bert@example.com"), await verify(hunter)]
    assert [each.status for each in seen] == [403, 500, 200, 500]


async def test_a_script_is_played_to_each_email(hunter: Hunter) -> None:
    hunter.verifier.play_for_each(status(202), as_usual)
    for _ in range(2):
        emails = ["anna@example.com", "bert@example.com"]
        for expected in (202, 200):
            assert {(await verify(hunter, email)).status for email in emails} == {expected}
        hunter.verifier.play_for_each(status(202), as_usual)


async def test_every_request_is_recorded(hunter: Hunter) -> None:
    await verify(hunter, key="another")
    await verify(hunter, "bert+1@example.com")
    await get(hunter, "/elsewhere", None)
    assert [(seen.path, seen.email) for seen in hunter.requests] == [
        (hunter.verifier.path, "anna@example.com"),
        (hunter.verifier.path, "bert+1@example.com"),
        ("/elsewhere", None),
    ]
    [asked] = hunter.asked_about("bert+1@example.com")
    assert asked.headers["authorization"] == f"Bearer {hunter.key}"
    assert asked.method == "GET"
    assert asked.at <= time.monotonic()


async def test_it_hangs_while_it_is_told_to(hunter: Hunter) -> None:
    hunter.hanging = True
    with pytest.raises(TimeoutError):
        await verify(hunter, seconds=0.1)
    waiting = [asyncio.create_task(verify(hunter)) for _ in range(3)]
    await until(lambda: hunter.in_flight >= 3)
    hunter.hanging = False
    assert [seen.status for seen in await asyncio.gather(*waiting)] == [200, 200, 200]
    assert (hunter.in_flight, hunter.most_in_flight) == (0, 3)


async def test_who_is_kept_waiting_is_released(hunter: Hunter) -> None:
    hunter.verifier.play(scripted.hang)
    waiting = asyncio.create_task(verify(hunter))
    await until(lambda: hunter.in_flight)
    hunter.release()
    assert (await waiting).status == 200
    with pytest.raises(TimeoutError):
        await verify(hunter, seconds=0.1)
    await until(lambda: not hunter.in_flight)


async def test_it_stops_while_it_hangs() -> None:
    async with Hunter().serving() as hunter:
        hunter.hanging = True
        waiting = asyncio.create_task(verify(hunter))
        await until(lambda: hunter.in_flight)
    with pytest.raises(aiohttp.ClientError):
        await waiting


@pytest.mark.parametrize(
    ("step", "failure"),
    [
        (scripted.reset, aiohttp.ClientOSError),
        (scripted.garbage, aiohttp.ClientResponseError),
        (scripted.cut_off, aiohttp.ClientPayloadError),
        (scripted.slow(0.02), TimeoutError),
    ],
    ids=["reset", "garbage", "cut_off", "slow"],
)
async def test_it_breaks_off(hunter: Hunter, step: Step, failure: type[Exception]) -> None:
    hunter.verifier.play(step)
    with pytest.raises(failure):
        await verify(hunter, seconds=0.5)
    hunter.verifier.play()
    assert (await verify(hunter)).status == 200


async def test_it_answers_what_is_not_the_documented_body(hunter: Hunter) -> None:
    hunter.verifier.play(
        scripted.slow(0),
        scripted.truncated,
        scripted.html,
        scripted.huge,
        document([1, "two"]),
        document(None, code=201),
        nested(10_000),
        content(b"\xff"),
        without("data"),
        scripted.null_leaves,
    )
    assert (await verify(hunter, "patrick@stripe.com")).json() == PATRICK
    truncated = await verify(hunter)
    assert truncated.headers["Content-Length"] == str(len(truncated.body))
    with pytest.raises(ValueError, match="char"):
        truncated.json()
    assert (await verify(hunter)).headers["Content-Type"] == "text/html"
    huge = await verify(hunter)
    assert len(huge.body) > HUGE
    assert huge.json()["data"]["status"] == "valid"
    assert (await verify(hunter)).json() == [1, "two"]
    nothing = await verify(hunter)
    assert (nothing.status, nothing.json()) == (201, None)
    assert (await verify(hunter)).body == b"[" * 10_000 + b"]" * 10_000
    assert (await verify(hunter)).body == b"\xff"
    assert (await verify(hunter)).json()["data"] is None
    nulls = (await verify(hunter)).json()
    assert nulls["data"].keys() == PATRICK["data"].keys()
    assert nulls["data"]["status"] is None
    assert nulls["meta"] == {"params": {"email": None}}


async def test_half_of_a_person_is_nobody(clearbit: Clearbit) -> None:
    clearbit.finder.play(without("person"), without("person.name", "company"))
    assert (await find(clearbit)).json()["person"] is None
    found = (await find(clearbit)).json()
    assert (found["person"]["name"], found["company"]) == (None, None)


async def test_a_redirect_tells_whether_anybody_followed(
    hunter: Hunter, clearbit: Clearbit
) -> None:
    hunter.verifier.play(redirect(f"{clearbit.url}/latest/meta-data"))
    assert (await verify(hunter)).status == 302
    assert clearbit.requests == []
    async with aiohttp.ClientSession() as session:
        url = f"{hunter.url}{hunter.verifier.path}?email=a@example.com&api_key={hunter.key}"
        async with session.get(url) as response:
            assert response.status == 404
    assert [seen.path for seen in clearbit.requests] == ["/latest/meta-data"]
