"""A worker that has too much to do refuses some of it, but not to say how it is."""

import asyncio
import time
from collections import Counter

from tests.api.assertions import assert_problem
from tests.factories import Api


async def stutter() -> None:
    """Hold up the event loop, again and again."""
    while True:
        time.sleep(0.1)  # noqa: ASYNC251
        await asyncio.sleep(0)


async def test_while_the_event_loop_is_late_requests_are_refused_and_health_is_told(
    api: Api,
) -> None:
    look_up = "/referral-code/nobody@example.com"
    assert (await api.get(look_up)).status == 404
    stuttering = asyncio.create_task(stutter())
    await asyncio.sleep(0.6)
    answers = [await api.get(look_up) for _ in range(4)]
    healthy = [await api.get("//health/live"), await api.get("//health/ready")]
    stuttering.cancel()
    assert [answer.status for answer in healthy] == [200, 200]
    told = Counter(answer.status for answer in answers)
    assert told[503] >= 2, told
    for answer in answers:
        if answer.status == 503:
            assert_problem(answer, 503, "overloaded")
            assert (answer.headers["Retry-After"], answer.headers["Connection"]) == ("1", "close")
    await asyncio.sleep(0.3)
    assert (await api.get(look_up)).status == 404


async def test_after_one_turn_that_took_long_nobody_is_refused(api: Api) -> None:
    await asyncio.sleep(0.2)
    time.sleep(1)  # noqa: ASYNC251
    for _ in range(30):
        assert (await api.get("/referral-code/nobody@example.com")).status == 404
