"""The SQL of idempotency keys."""

from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.idempotency import Answer, IdempotencyKey
from service.repositories.connection import Connection, rows_in

# Waits for another request with the same key to commit or roll back. A key that has had its time
# is taken over.
CLAIM: Final = """
    INSERT INTO idempotency_keys AS k (scope, idempotency_key, fingerprint, created_at)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (scope, idempotency_key) DO UPDATE
       SET fingerprint = excluded.fingerprint, created_at = excluded.created_at,
           status = NULL, body = NULL, user_id = NULL
     WHERE k.created_at <= $5
    RETURNING k.scope
"""

FIND: Final = """
    SELECT fingerprint, status, body
      FROM idempotency_keys
     WHERE scope = $1
       AND idempotency_key = $2
       AND created_at > $3
"""

KEEP: Final = """
    UPDATE idempotency_keys
       SET status = $3, body = $4, user_id = $5
     WHERE scope = $1
       AND idempotency_key = $2
"""

# The one that has just been claimed stays, whatever other machines' clocks say.
DELETE_SURPLUS: Final = """
    DELETE FROM idempotency_keys
     WHERE scope = $1
       AND idempotency_key = ANY (ARRAY(
        SELECT idempotency_key
          FROM idempotency_keys
         WHERE scope = $1
           AND idempotency_key <> $2
         ORDER BY created_at DESC
        OFFSET $3 - 1
         LIMIT 1000
     ))
"""

# What a user was refused was once kept without the user's id, but in the user's scope.
DELETE_OF_USER: Final = """
    DELETE FROM idempotency_keys
     WHERE user_id = $1
        OR scope = $2
"""

DELETE_OLD: Final = """
    DELETE FROM idempotency_keys
     WHERE (scope, idempotency_key) IN (
        SELECT scope, idempotency_key FROM idempotency_keys
         WHERE created_at <= $1 ORDER BY created_at LIMIT 1000
     )
"""


class IdempotencyKeyRepository:
    """Idempotency keys, one statement per method."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def claim(self, key: IdempotencyKey, now: datetime, forgotten_before: datetime) -> bool:
        """Store the key; return False where an earlier request has stored it."""
        claimed = await self._connection.fetchval(
            CLAIM, key.scope, key.key, key.fingerprint, now, forgotten_before
        )
        return claimed is not None

    async def find(
        self, key: IdempotencyKey, forgotten_before: datetime
    ) -> tuple[bytes, Answer] | None:
        """Return the fingerprint of the first request with the key, and its answer."""
        row = await self._connection.fetchrow(FIND, key.scope, key.key, forgotten_before)
        return None if row is None else (row["fingerprint"], Answer(row["status"], row["body"]))

    async def keep(self, key: IdempotencyKey, answer: Answer, user_id: UUID | None) -> None:
        """Store the answer to give again; `user_id` is whose data it holds."""
        await self._connection.execute(
            KEEP, key.scope, key.key, answer.status, answer.body, user_id
        )

    async def delete_surplus(self, key: IdempotencyKey, most_kept: int) -> None:
        """Delete the oldest keys of the scope, up to 1,000, so that `most_kept` are left.

        In the transaction that has claimed the key, which stays.
        """
        await self._connection.execute(DELETE_SURPLUS, key.scope, key.key, most_kept)

    async def delete_of_user(self, user_id: UUID) -> None:
        """Delete the keys of the user, and those whose answers hold the user's data."""
        await self._connection.execute(DELETE_OF_USER, user_id, str(user_id))

    async def delete_old(self, forgotten_before: datetime) -> int:
        """Delete up to 1,000 keys that have had their time; return how many."""
        return rows_in(await self._connection.execute(DELETE_OLD, forgotten_before))
