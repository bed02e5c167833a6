"""Password hashes have threads and a queue of their own: other requests do not wait for them."""

import asyncio
import time
from dataclasses import replace
from statistics import median

import pytest

from service.api.http.app_keys import SERVICES
from service.security.password_hashing import Argon2
from service.settings.settings import Settings
from tests.api.assertions import assert_problem
from tests.factories import PASSWORD, Api, running

pytestmark = pytest.mark.usefixtures("database", "redis")
DEAR = Argon2(memory_kib=19_456, passes=8, lanes=1)
"""About 80 ms for a hash: much longer than a request without one."""


@pytest.fixture
def dear(settings: Settings) -> Settings:
    return replace(settings, argon2=DEAR, hashing_threads=1)


async def test_where_the_queue_is_full_a_hash_is_refused_at_once(dear: Settings) -> None:
    async with running(replace(dear, hashing_queue=2)) as api:
        hasher = api.app[SERVICES].hasher
        hashes = [asyncio.create_task(hasher.hash(PASSWORD)) for _ in range(2)]
        await asyncio.sleep(0)
        for refused in (await api.log_in("nobody@example.com"), await api.register()):
            assert_problem(refused, 503, "hashing-queue-full")
            assert refused.headers["Retry-After"] == "1"
        assert not hashes[-1].done()
        await asyncio.gather(*hashes)
        assert (await api.register("anna@example.com")).status == 201
        assert (await api.log_in("anna@example.com")).status == 200


async def test_requests_without_a_password_do_not_wait_for_those_with_one(dear: Settings) -> None:
    """50 quick requests, one after the other, are answered before half of 20 sign-ins are."""
    async with running(dear) as api:
        await api.register("anna@example.com")
        sign_ins = [asyncio.create_task(api.log_in("anna@example.com")) for _ in range(20)]
        async with asyncio.timeout(5):
            while api.app[SERVICES].hasher.pending < 10:
                await asyncio.sleep(0.001)
        before = sum(sign_in.done() for sign_in in sign_ins)
        for _ in range(25):
            assert (await api.get("//health/live")).status == 200
            assert (await api.get("/referral-code/anna@example.com")).status == 404
        assert sum(sign_in.done() for sign_in in sign_ins) < before + 8
        answers = await asyncio.gather(*sign_ins)
        assert [answer.status for answer in answers] == [200] * 20


async def cost(api: Api, email: str, password: str = "wrong password") -> float:
    """Return the seconds of a core that a refusal takes, nearly all of it to hash."""
    before = time.process_time()
    answer = await api.log_in(email, password)
    assert_problem(answer, 401, "invalid-credentials")
    return time.process_time() - before


async def test_an_unknown_email_costs_a_hash_too(dear: Settings) -> None:
    """Not to be told apart from a wrong password by the time that it takes."""
    async with running(dear) as api:
        await api.register("anna@example.com")
        known, unknown, malformed = [], [], []
        for _ in range(5):
            known.append(await cost(api, "anna@example.com"))
            unknown.append(await cost(api, "nobody@example.com"))
            malformed.append(await cost(api, "nobody"))
        for others in (unknown, malformed):
            assert 0.6 < median(others) / median(known) < 1.6


async def test_a_password_too_long_to_be_anybodys_takes_as_long(dear: Settings) -> None:
    async with running(dear) as api:
        await api.register("anna@example.com")
        usual = await cost(api, "anna@example.com")
        assert await cost(api, "anna@example.com", "x" * 5000) > usual / 3
