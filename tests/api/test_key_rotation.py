"""A resource server that keeps the public keys for ten minutes, while the signing key changes."""

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from redis.asyncio import Redis

from service.domain.scopes import Scope
from service.security.signing_keys import JWKS_MAX_AGE, SigningKeys
from service.settings.settings import Settings
from tests.factories import Api, running
from tests.oauth import TOKEN, Application, new_application

MINUTE = timedelta(minutes=1)
LATEST_RESTART = 10
"""Minutes within which, `keys rotate` says, every process has to know the new keys."""
JWKS = "//.well-known/jwks.json"


class Processes:
    """Two processes behind one address, with one clock. A restart takes new keys."""

    def __init__(self, stack: AsyncExitStack, settings: Settings) -> None:
        self._stack = stack
        self._settings = settings
        self.now = timedelta()
        self.running: dict[str, Api] = {}

    async def restart(self, name: str, keys: SigningKeys) -> None:
        settings = replace(self._settings, signing_keys=keys)
        self.running[name] = await self._stack.enter_async_context(running(settings))
        self.tick(timedelta())

    def tick(self, by: timedelta) -> None:
        self.now += by
        for api in self.running.values():
            api.clock.ahead = self.now


@pytest.fixture
async def processes(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        yield Processes(stack, settings)


def signer_of(token: str, document: Any) -> str | None:
    """Return the id of the key in a JWK set that has signed the token, None if there is none."""
    try:
        decoded = jwt.decode(token, KeySet.import_key_set(document), algorithms=["ES256"])
    except (JoseError, ValueError):
        return None
    return str(decoded.header["kid"])


async def test_no_valid_token_is_refused_by_who_keeps_the_keys_for_ten_minutes(
    processes: Processes, settings: Settings
) -> None:
    lifetime = int(settings.access_token_ttl / MINUTE)
    cache = int(JWKS_MAX_AGE / MINUTE)
    keys = settings.signing_keys
    await processes.restart("prompt", keys)
    await processes.restart("late", keys)
    application = await new_application(
        processes.running["late"], own_scopes=[Scope.REFERRALS_READ]
    )
    # What was fetched or issued in the last ten minutes, by either process: all still in use.
    documents: deque[Any] = deque(maxlen=2 * (cache + 1))
    tokens: deque[str] = deque(maxlen=2 * (lifetime + 1))
    signers: list[str | None] = []
    pending: dict[int, SigningKeys] = {}
    for minute in range(110):
        if minute in {15, 40, 70}:
            now = datetime.now(UTC) + processes.now
            keys = keys.rotated(now, settings.access_token_ttl)
            await processes.restart("prompt", keys)
            pending[minute + LATEST_RESTART - 1] = keys
        if minute in pending:
            await processes.restart("late", pending[minute])
        for api in processes.running.values():
            documents.append((await api.get(JWKS)).json())
            sender = Application(api, application.client_id, application.secret)
            answer = await sender.send(TOKEN, grant_type="client_credentials")
            tokens.append(answer.json()["access_token"])
        for api in processes.running.values():
            for token in (tokens[0], tokens[-2], tokens[-1]):
                status = (await api.get("/referrals/me", by=token)).status
                assert status != 401, f"minute {minute}: a process refuses a token of the other"
        for document in {json.dumps(document): document for document in documents}.values():
            signed_by = [signer_of(token, document) for token in tokens]
            assert None not in signed_by, f"minute {minute}: not all are signed by {document}"
        signers.append(signer_of(tokens[-1], documents[-1]))
        processes.tick(MINUTE)
    assert len(dict.fromkeys(signers)) == 4, "every key has had its turn"
    assert len(documents[-1]["keys"]) == 3, "the oldest is gone"
    assert signer_of(tokens[-1], {"keys": [keys.keys[0].to_public_jwk()]}) is None
