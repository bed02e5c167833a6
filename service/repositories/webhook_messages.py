"""The SQL of webhook messages."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from uuid6 import uuid7

from service.repositories.connection import Repository

MOST_ENDPOINTS: Final = 20

HAS_LISTENERS: Final = """
    SELECT EXISTS (SELECT FROM webhook_endpoints
                    WHERE disabled_at IS NULL AND (types = '{}' OR types && $1))
"""


def _add(whom: str) -> str:
    return f"""
        WITH new AS (
            SELECT message_id, type, body
              FROM unnest($1::uuid[], $2::text[], $3::bytea[]) AS new (message_id, type, body)
        ), wanted AS (
            SELECT n.message_id, e.endpoint_id, row_number() OVER () AS place
              FROM new n
              JOIN webhook_endpoints e ON {whom}
        ), message AS (
            INSERT INTO webhook_messages (message_id, type, body, created_at)
            SELECT message_id, type, body, $4
              FROM new
             WHERE message_id IN (SELECT message_id FROM wanted)
        ), delivery AS (
            INSERT INTO webhook_deliveries (message_id, endpoint_id, created_at)
            SELECT message_id, endpoint_id, $4
              FROM wanted
        )
        INSERT INTO jobs (job_id, kind, payload, created_at, due_at)
        SELECT job_id, 'delivery',
               jsonb_build_object('message_id', message_id, 'endpoint_id', endpoint_id), $4, $4
          FROM wanted
          JOIN unnest($5::uuid[]) WITH ORDINALITY AS ids (job_id, place) USING (place)
    """


# A delivery, and its job, for each endpoint that wants the type. What nobody wants is not stored.
ADD: Final = _add("e.disabled_at IS NULL AND (e.types = '{}' OR n.type = ANY (e.types))")

ADD_FOR_ONE: Final = _add("e.endpoint_id = $6 AND e.deleted_at IS NULL")


@dataclass(frozen=True, slots=True)
class NewMessage:
    """What endpoints are sent, once the companies' ids of participants have been put in."""

    message_id: UUID
    type: str
    body: bytes


class WebhookMessageRepository(Repository):
    """Webhook messages, one statement a method."""

    async def has_listeners(self, types: Collection[str]) -> bool:
        """Whether anybody listens to one of these types."""
        listened: bool = await self._connection.fetchval(HAS_LISTENERS, list(types))
        return listened

    async def add(self, messages: Sequence[NewMessage], now: datetime) -> None:
        """Store messages, and their deliveries to all who listen."""
        await self._connection.execute(ADD, *_arguments(messages, now, MOST_ENDPOINTS))

    async def add_for_one(self, message: NewMessage, now: datetime, endpoint_id: UUID) -> None:
        """Store a message for one endpoint, whatever types it wants."""
        await self._connection.execute(ADD_FOR_ONE, *_arguments([message], now, 1), endpoint_id)


def _arguments(messages: Sequence[NewMessage], now: datetime, endpoints: int) -> list[object]:
    return [
        [message.message_id for message in messages],
        [message.type for message in messages],
        [message.body for message in messages],
        now,
        [uuid7() for _ in range(endpoints * len(messages))],
    ]
