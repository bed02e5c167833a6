"""The SQL of OAuth clients."""

from datetime import datetime
from typing import Any, Final

from service.domain.oauth import Client
from service.domain.scopes import Scope
from service.repositories.connection import Connection

INSERT: Final = """
    INSERT INTO oauth_clients (client_id, name, secret_hash, redirect_uris, scopes, created_at)
    VALUES ($1, $2, $3, $4, $5, $6)
"""

FIND: Final = """
    SELECT client_id, name, secret_hash, redirect_uris, scopes
      FROM oauth_clients
     WHERE client_id = $1
       AND deleted_at IS NULL
"""

LIST: Final = """
    SELECT client_id, name, secret_hash, redirect_uris, scopes
      FROM oauth_clients
     WHERE deleted_at IS NULL
     ORDER BY created_at, client_id
"""

DELETE: Final = """
    UPDATE oauth_clients
       SET deleted_at = $2
     WHERE client_id = $1
       AND deleted_at IS NULL
    RETURNING client_id
"""


class OAuthClientRepository:
    """OAuth clients, one statement a method."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(self, client: Client, now: datetime) -> None:
        await self._connection.execute(
            INSERT,
            client.client_id,
            client.name,
            client.secret_hash,
            client.redirect_uris,
            client.scopes,
            now,
        )

    async def find(self, client_id: str) -> Client | None:
        row = await self._connection.fetchrow(FIND, client_id)
        return None if row is None else _client(row)

    async def list_all(self) -> list[Client]:
        """Return all clients: they are made by hand, and few."""
        return [_client(row) for row in await self._connection.fetch(LIST)]

    async def delete(self, client_id: str, now: datetime) -> bool:
        """Delete the client; return whether there was one."""
        return await self._connection.fetchval(DELETE, client_id, now) is not None


def _client(row: Any) -> Client:
    return Client(
        client_id=row["client_id"],
        name=row["name"],
        secret_hash=row["secret_hash"],
        redirect_uris=tuple(row["redirect_uris"]),
        scopes=frozenset(map(Scope, row["scopes"])),
    )
