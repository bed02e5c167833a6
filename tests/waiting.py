"""Waiting for what a test expects to happen."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Return what the condition, or what it has to be awaited for, gives once it is true.

    Raises TimeoutError after so many seconds.
    """
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if inspect.isawaitable(held):
                held = await held
            if held:
                return held
            await asyncio.sleep(0.01)
