"""A company that is sent webhooks during a fault, by a receiver that fails now and then itself."""

import asyncio
import random
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import aiohttp
import asyncpg
from aiohttp import web

from tests.company import basic
from tests.faults.load import TRIES, Unanswered, Wire
from tests.stand_ins.webhooks import Receiver

FAILS: Final = 0.01
"""Of the attempts this share is answered 500, as many are cut off, and as many answered late."""
LATEST_SECONDS: Final = 2.0
SETTLED_SECONDS: Final = 20.0
"""Within these everything is sent that no killed worker had begun to send."""
ANSWERED_SECONDS: Final = 10.0
"""An endpoint is changed once no attempt is under way, which a killed worker never says."""

WAITING: Final = """
    SELECT payload ->> 'message_id' AS message_id, tries, due_at, last_error
      FROM jobs
     WHERE kind = 'delivery'
       AND (tries = 0 OR last_error IS NOT NULL OR due_at <= now())
"""


class UnreliableReceiver(Receiver):
    """Remembers what it has accepted. Fails now and then, until it is `reliable`."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self.reliable = False
        self.accepted: set[str] = set()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        answer = await super()._handle(request)
        mood = self._rng.random() if not self.reliable else 1.0
        if mood < FAILS:
            return web.Response(status=500)
        if mood < 2 * FAILS and request.transport is not None:
            request.transport.abort()
        elif mood < 3 * FAILS:
            await asyncio.sleep(self._rng.uniform(0, LATEST_SECONDS))
        self.accepted.add(request.headers["webhook-id"])
        return answer


class Webhooks:
    """An endpoint for all types, and what was sent there."""

    def __init__(
        self, wire: Wire, receiver: UnreliableReceiver, client_id: str, secret: str
    ) -> None:
        self._wire = wire
        self._headers = basic(client_id, secret)
        self.receiver = receiver
        self.endpoint_id = ""
        self.secret = ""

    async def listen(self) -> None:
        """Create the endpoint, before anything happens."""
        async with self._session() as session:
            made = await self._call(session, "POST", "", {"url": self.receiver.url})
            self.endpoint_id = made["id"]
            self.secret = (await self._call(session, "GET", f"/{self.endpoint_id}/secret"))[
                "secret"
            ]

    async def settle(self, database_url: str) -> None:
        """Have all that waits sent now, to a receiver that answers; complain if that fails."""
        self.receiver.reliable = True
        deadline = monotonic() + SETTLED_SECONDS
        connection = await asyncpg.connect(database_url)
        async with self._session() as session:
            # Another URL has not failed yet, even if it is the same one: its rest is over.
            await self._call(session, "PATCH", f"/{self.endpoint_id}", {"url": self.receiver.url})
            while waiting := await connection.fetch(WAITING):
                if monotonic() > deadline:
                    complaint = f"{len(waiting)} webhooks are not sent: {dict(waiting[0])}"
                    self._wire.history.complaints.append(complaint)
                    break
                for row in waiting:  # after a failure, or by a clock that has stepped since
                    path = f"/{self.endpoint_id}/deliveries/{row['message_id']}/retry"
                    await self._call(session, "POST", path)
                await asyncio.sleep(1)
        await connection.close()

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWERED_SECONDS))

    async def _call(
        self, session: aiohttp.ClientSession, method: str, path: str, body: Any = None
    ) -> Any:
        for _ in range(TRIES - 1):
            with suppress(Unanswered):
                return await self._send(session, method, path, body)
            await asyncio.sleep(1)
        return await self._send(session, method, path, body)

    async def _send(self, session: aiohttp.ClientSession, method: str, path: str, body: Any) -> Any:
        status, answer = await self._wire.send(
            session, method, f"/webhook-endpoints{path}", body, self._headers
        )
        assert status in {200, 201, 202}, answer
        return answer
