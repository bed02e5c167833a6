"""Noticing a server that hangs: it refuses nothing, and answers nothing.

A statement would wait for its timeout, which has to outlast waits for locks. So once no statement
has ended for a while, the server is asked for a sign of life on a new connection, and until it
gives one nobody waits for it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    import asyncpg

    Connect: TypeAlias = Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]]

SILENT_SECONDS: Final = 0.4
"""How long a busy server may be silent before it is asked for a sign of life."""
SIGN_OF_LIFE_SECONDS: Final = 0.4
"""How long connecting and answering may then take."""


class Watch:
    """Asks a server that is silent while `is_busy()`; calls `abandon` while it does not answer."""

    def __init__(
        self, connect: "Connect", is_busy: Callable[[], bool], abandon: Callable[[], None]
    ) -> None:
        self._connect = connect
        self._is_busy = is_busy
        self._abandon = abandon
        self._heard_at = 0.0
        self._hangs = False

    def check(self) -> None:
        """Raise TimeoutError while the server is known to hang."""
        if self._hangs:
            raise TimeoutError("The server does not answer.")

    def heard(self) -> None:
        """Note that the server has just answered, or has only now been given something to do."""
        self._heard_at = time.monotonic()

    async def run(self) -> None:
        while True:
            silent = time.monotonic() - self._heard_at if self._is_busy() else 0.0
            if silent < SILENT_SECONDS:
                await asyncio.sleep(SILENT_SECONDS - silent)
                continue
            while not await self._answers():
                self._hangs = True
                self._abandon()
                await asyncio.sleep(SIGN_OF_LIFE_SECONDS / 4)
            self._hangs = False
            self.heard()

    async def _answers(self) -> bool:
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(SIGN_OF_LIFE_SECONDS):
                connection = await self._connect()
                try:
                    await connection.execute("SELECT 1")
                finally:
                    connection.terminate()
        except OSError:  # or TimeoutError; if others got answers meanwhile, this process is slow
            return self._heard_at > asked_at
        except Exception:  # noqa: BLE001  # a refusal is an answer too
            return True
        return True
