"""The SQL of idempotency keys."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.idempotency import IdempotencyKey
from service.repositories.connection import Repository

# Waits for another request with the same key to commit or roll back. An expired key is taken over.
CLAIM: Final = """
    INSERT INTO idempotency_keys AS k (scope, idempotency_key, fingerprint, created_at)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (scope, idempotency_key) DO UPDATE
       SET fingerprint = excluded.fingerprint, created_at = excluded.created_at,
           status = NULL, body = NULL, user_id = NULL, participant_id = NULL
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
       SET status = $3, body = $4, user_id = $5, participant_id = $6
     WHERE scope = $1
       AND idempotency_key = $2
"""

# The new key stays, whatever other machines' clocks say.
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

# Older releases kept refusals without the user's id, but in the user's scope.
DELETE_OF_USER: Final = """
    DELETE FROM idempotency_keys
     WHERE user_id = $1
        OR scope = $2
"""

DELETE_OF_PARTICIPANT: Final = """
    DELETE FROM idempotency_keys
     WHERE participant_id = $1
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was sent over HTTP."""

    status: int
    body: bytes


class IdempotencyKeyRepository(Repository):
    """Idempotency keys, one statement per method."""

    async def claim(self, key: IdempotencyKey, now: datetime, forgotten_before: datetime) -> bool:
        """Store the key; return False if an earlier request has."""
        return await self._found(CLAIM, key.scope, key.key, key.fingerprint, now, forgotten_before)

    async def find(
        self, key: IdempotencyKey, forgotten_before: datetime
    ) -> tuple[bytes, Answer] | None:
        """Return the fingerprint of the first request with the key, and its answer."""
        row = await self._connection.fetchrow(FIND, key.scope, key.key, forgotten_before)
        return None if row is None else (row["fingerprint"], Answer(row["status"], row["body"]))

    async def keep(
        self,
        key: IdempotencyKey,
        answer: Answer,
        user_id: UUID | None,
        participant_id: UUID | None = None,
    ) -> None:
        """Store the answer to repeat, which holds data of `user_id` or of `participant_id`."""
        await self._connection.execute(
            KEEP, key.scope, key.key, answer.status, answer.body, user_id, participant_id
        )

    async def delete_surplus(self, key: IdempotencyKey, most_kept: int) -> None:
        """Delete the oldest keys of the scope, up to 1,000, beyond `most_kept`.

        In the transaction that claimed the key, which stays.
        """
        await self._connection.execute(DELETE_SURPLUS, key.scope, key.key, most_kept)

    async def delete_of_user(self, user_id: UUID) -> None:
        """Delete the keys of the user, and those whose answers hold the user's data."""
        await self._connection.execute(DELETE_OF_USER, user_id, str(user_id))

    async def delete_of_participant(self, participant_id: UUID) -> None:
        """Delete the keys whose answers name the participant as a company does."""
        await self._connection.execute(DELETE_OF_PARTICIPANT, participant_id)
