"""The SQL of OAuth clients."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from service.domain.oauth import Client, Grant
from service.domain.scopes import Scope
from service.repositories.connection import Repository

INSERT: Final = """
    INSERT INTO oauth_clients (client_id, name, secret_hash, redirect_uris, scopes, grants,
                               own_scopes, resource_server, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""

_SELECT: Final = """
    SELECT client_id, name, secret_hash, redirect_uris, scopes, grants, own_scopes,
           resource_server, previous_secret_hash, previous_secret_expires_at
      FROM oauth_clients
     WHERE deleted_at IS NULL
"""

FIND_SEVERAL: Final = f"{_SELECT} AND client_id = ANY ($1)"

# What is granted to a client is written under this lock: a change of the client, or its deletion,
# is either seen here or sees the grant.
SHARE: Final = f"{_SELECT} AND client_id = $1 FOR SHARE"

LOCK: Final = f"{_SELECT} AND client_id = $1 FOR UPDATE"

LIST: Final = f"{_SELECT} ORDER BY created_at, client_id"

UPDATE: Final = """
    UPDATE oauth_clients
       SET name = $2, redirect_uris = $3, scopes = $4, grants = $5, own_scopes = $6,
           resource_server = $7, secret_hash = $8, previous_secret_hash = $9,
           previous_secret_expires_at = $10
     WHERE client_id = $1
"""

DELETE: Final = """
    UPDATE oauth_clients
       SET deleted_at = $2
     WHERE client_id = $1
       AND deleted_at IS NULL
    RETURNING client_id
"""


class OAuthClientRepository(Repository):
    """OAuth clients, one statement per method."""

    async def add(self, client: Client, now: datetime) -> None:
        await self._connection.execute(
            INSERT,
            client.client_id,
            client.name,
            client.secret_hash,
            client.redirect_uris,
            client.scopes,
            client.grants,
            client.own_scopes,
            client.resource_server,
            now,
        )

    async def find_several(self, client_ids: Sequence[str]) -> dict[str, Client]:
        rows = await self._connection.fetch(FIND_SEVERAL, client_ids)
        return {client.client_id: client for client in map(_client, rows)}

    async def share(self, client_id: str) -> Client | None:
        """Return the client, which stays as it is until this transaction ends."""
        return await self._one(_client, SHARE, client_id)

    async def lock(self, client_id: str) -> Client | None:
        """Return the client, for this transaction alone to change until it ends."""
        return await self._one(_client, LOCK, client_id)

    async def list_all(self) -> list[Client]:
        """Return all clients: they are made by hand, and few."""
        return [_client(row) for row in await self._connection.fetch(LIST)]

    async def update(self, client: Client) -> None:
        """Store the client as it is from now on."""
        await self._connection.execute(
            UPDATE,
            client.client_id,
            client.name,
            client.redirect_uris,
            client.scopes,
            client.grants,
            client.own_scopes,
            client.resource_server,
            client.secret_hash,
            client.previous_secret_hash,
            client.previous_secret_expires_at,
        )

    async def delete(self, client_id: str, now: datetime) -> bool:
        """Delete the client; return whether there was one."""
        return await self._found(DELETE, client_id, now)


def _client(row: Any) -> Client:
    grants = frozenset(map(Grant, row["grants"]))
    for_users = Grant.AUTHORIZATION_CODE in grants
    columns = {
        "redirect_uris": tuple(row["redirect_uris"]),
        # Those of a client that never acted for users are left from before there were grants.
        "scopes": frozenset(map(Scope, row["scopes"])) if for_users else frozenset(),
        "grants": grants,
        "own_scopes": frozenset(map(Scope, row["own_scopes"])),
    }
    return Client(**{**row, **columns})
