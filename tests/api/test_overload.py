"""A worker that has too much to do refuses some of it, but not to say how it is."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import asyncpg

from service.api.http.load_shedding import MANY
from service.postgresql.pool import BURST_SECONDS, MOST_WAITING
from service.settings.settings import Settings
from tests.api.assertions import assert_problem
from tests.factories import Answer, Api, running
from tests.waiting import until

LOOK_UP = "/referral-code/nobody@example.com"


@asynccontextmanager
async def stuttering() -> AsyncIterator[None]:
    """Hold up the event loop, again and again."""

    async def stutter() -> None:
        while True:
            time.sleep(0.06)  # noqa: ASYNC251
            await asyncio.sleep(0)

    task = asyncio.create_task(stutter())
    await asyncio.sleep(0.4)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_while_the_event_loop_is_late_and_many_come_some_are_refused(api: Api) -> None:
    assert (await api.get(LOOK_UP)).status == 404
    answers: list[Answer] = []

    async def come_again_and_again() -> None:
        answers.extend([await api.get(LOOK_UP) for _ in range(5)])

    async with stuttering():
        await asyncio.gather(*(come_again_and_again() for _ in range(2 * MANY)))
        healthy = [await api.get("//health/live"), await api.get("//health/ready")]
    assert [answer.status for answer in healthy] == [200, 200]
    told = Counter(answer.status for answer in answers)
    assert told[503] >= MANY // 2, told
    assert told[404] >= MANY, told
    for answer in answers:
        if answer.status == 503:
            assert_problem(answer, 503, "overloaded")
            assert (answer.headers["Retry-After"], answer.headers["Connection"]) == ("1", "close")

    async def served_again() -> bool:
        return (await api.get(LOOK_UP)).status == 404

    await until(served_again)


async def test_while_the_event_loop_is_late_for_another_reason_nobody_is_refused(api: Api) -> None:
    async with stuttering():
        for _ in range(4):
            looks = [api.get(LOOK_UP) for _ in range(MANY)]
            told = Counter(answer.status for answer in await asyncio.gather(*looks))
            assert told == {404: MANY}


async def test_after_one_turn_that_took_long_nobody_is_refused(api: Api) -> None:
    await asyncio.sleep(0.2)
    time.sleep(1)  # noqa: ASYNC251
    answers = await asyncio.gather(*(api.get(LOOK_UP) for _ in range(3 * MANY)))
    assert Counter(answer.status for answer in answers) == {404: 3 * MANY}


async def test_while_too_many_wait_for_postgresql_writes_are_refused_unread_and_cached_reads_served(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with running(replace(settings, database_pool_size=1)) as api:
        anna = await api.new_person("anna@example.com")
        code = await api.new_code(anna)
        assert (await api.get("/referral-code/anna@example.com")).json()["code"] == code
        async with database.transaction():
            await database.execute("LOCK TABLE referral_codes IN SHARE MODE")
            waiting = [
                asyncio.create_task(api.put("/referral-code", {"expires_in_days": 7}, by=anna))
                for _ in range(MOST_WAITING + 5)
            ]
            await asyncio.sleep(3 * BURST_SECONDS)
            refused = await api.put("/referral-code", {"not": "read"}, by="nor this")
            assert_problem(refused, 503, "overloaded")
            assert refused.headers["Connection"] == "close"
            assert (await api.get("/referral-code/anna@example.com")).json()["code"] == code
        assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}
        assert (await api.put("/referral-code", {"not": "read"}, by="nor this")).status == 401
