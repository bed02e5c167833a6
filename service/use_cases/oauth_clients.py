"""OAuth clients as operators manage them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.clock import Clock
from service.domain.oauth import Client, ClientFaulty, hash_secret, new_secret
from service.domain.scopes import Scope
from service.domain.security_events import Origin, SecurityEvent
from service.postgresql.database import Database, Repositories, retried
from service.repositories.sessions import MOST_AT_ONCE
from service.use_cases.cache_invalidation import CacheInvalidation, session_key
from service.use_cases.security_events import log_event

_LEAST_ID: Final = UUID(int=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A changed client, whether it may now do less, and how many sessions ended for that reason."""

    client: Client
    narrowed: bool
    ended: int


class OAuthClients:
    """Clients: making, changing and deleting them.

    Jobs make the cache forget ended sessions: a running service does them within a second, the
    command line before it exits.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self,
        name: str,
        *,
        public: bool,
        redirect_uris: tuple[str, ...] = (),
        scopes: frozenset[Scope] = frozenset(),
        own_scopes: frozenset[Scope] = frozenset(),
        resource_server: bool = False,
    ) -> tuple[Client, str | None]:
        """Make a client; return it with its secret, which is never shown again.

        `scopes` are what users may grant it, `own_scopes` what it may do for itself. Raises
        ClientFaulty.
        """
        secret = None if public else new_secret()
        client = Client(
            client_id=str(uuid7()),
            name=name,
            secret_hash=None if secret is None else hash_secret(secret),
            redirect_uris=redirect_uris,
            scopes=scopes,
            own_scopes=own_scopes,
            resource_server=resource_server,
        ).completed()
        async with self._database.transaction() as repositories:
            await repositories.oauth_clients.add(client, self._clock())
            _log_after_commit(repositories, SecurityEvent.CLIENT_CREATED, client.client_id)
        return client, secret

    async def list_all(self) -> list[Client]:
        return await self._database.read(lambda stored: stored.oauth_clients.list_all())

    @retried
    async def update(self, client_id: str, change: Callable[[Client], Client]) -> Changed:
        """Make the client what `change` makes of it.

        If it may do less than before, its sessions end, so no token keeps what the client has lost.
        Raises ClientFaulty.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            old = await _lock(repositories, client_id)
            new = change(old).completed()
            await repositories.oauth_clients.update(new)
            narrowed = new.may_less_than(old)
            ended = await _end_sessions(repositories, client_id, now) if narrowed else 0
            if not new.has_redirects_of(old):
                await repositories.authorization_codes.delete_of_client(client_id)
            _log_after_commit(repositories, SecurityEvent.CLIENT_UPDATED, client_id)
        return Changed(client=new, narrowed=narrowed, ended=ended)

    @retried
    async def rotate_secret(self, client_id: str, overlap: timedelta) -> tuple[Client, str]:
        """Give the client a new secret; return both. The old secret works for `overlap` longer.

        Raises ClientFaulty if the client has no secret; or, unless `overlap` is zero, if the
        previous secret still works, which a third one would end early.
        """
        now = self._clock()
        secret = new_secret()
        async with self._database.transaction() as repositories:
            old = await _lock(repositories, client_id)
            if not old.is_confidential:
                raise ClientFaulty("A public client has no secret.")
            until = old.previous_secret_expires_at
            if overlap and until is not None and now < until:
                raise ClientFaulty(
                    f"The secret was replaced already, and the one before it works until "
                    f"{until:%FT%TZ}. To end both at once, add --overlap 0."
                )
            new = replace(
                old,
                secret_hash=hash_secret(secret),
                previous_secret_hash=old.secret_hash if overlap else None,
                previous_secret_expires_at=now + overlap if overlap else None,
            )
            await repositories.oauth_clients.update(new)
            _log_after_commit(
                repositories, SecurityEvent.CLIENT_UPDATED, client_id, reason="secret-replaced"
            )
        return new, secret

    @retried
    async def delete(self, client_id: str) -> int:
        """Delete the client and end all its sessions; return how many.

        Raises ClientFaulty if there is no such client.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            if not await repositories.oauth_clients.delete(client_id, now):
                raise _no_client(client_id)
            ended = await _end_sessions(repositories, client_id, now)
            _log_after_commit(repositories, SecurityEvent.CLIENT_DELETED, client_id)
        return ended


async def _end_sessions(repositories: Repositories, client_id: str, now: datetime) -> int:
    """End the client's sessions and codes in the caller's transaction; return how many sessions.

    The client's row is locked, so no new ones can be added.
    """
    count, last = 0, _LEAST_ID
    while True:
        ended = await repositories.sessions.end_of_client(client_id, last, now)
        count += len(ended)
        await CacheInvalidation.plan(repositories, [session_key(one) for one in ended], now)
        if len(ended) < MOST_AT_ONCE:
            break
        last = max(ended)
    await repositories.authorization_codes.delete_of_client(client_id)
    return count


async def _lock(repositories: Repositories, client_id: str) -> Client:
    client = await repositories.oauth_clients.lock(client_id)
    if client is None:
        raise _no_client(client_id)
    return client


def _no_client(client_id: str) -> ClientFaulty:
    return ClientFaulty(f"There is no client {client_id}.")


def _log_after_commit(
    repositories: Repositories, event: SecurityEvent, client_id: str, reason: str | None = None
) -> None:
    repositories.after_commit(partial(log_event, event, Origin(), client=client_id, reason=reason))
