"""The loops beside the requests end with the service."""

import asyncio
from contextlib import suppress

from service.app import _cancel


async def test_a_loop_that_swallows_a_cancellation_ends_all_the_same() -> None:
    """As wait_for of Python 3.11 does, which redis-py calls with every command: a drain that is
    done at the instant of the cancellation is taken for the more important news."""
    started = asyncio.Event()

    async def swallow_one() -> None:
        started.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    loop = asyncio.create_task(swallow_one())
    await started.wait()
    end = asyncio.create_task(_cancel(loop))
    await asyncio.wait([end], timeout=2)
    ended = loop.done()
    loop.cancel()
    await end
    assert ended
