"""The SQL of attempts to deliver webhooks, which are written with what they make of a delivery."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from service.domain.webhook_deliveries import Attempt
from service.repositories.connection import Repository

OF_MESSAGES: Final = """
    SELECT message_id, attempted_at AS at, status, error, milliseconds
      FROM webhook_attempts
     WHERE endpoint_id = $1
       AND message_id = ANY ($2)
     ORDER BY message_id, attempt
"""


class WebhookAttemptRepository(Repository):
    """Attempts, one statement a method."""

    async def of_messages(
        self, endpoint_id: UUID, message_ids: Sequence[UUID]
    ) -> Mapping[UUID, Sequence[Attempt]]:
        """Return the attempts to send messages to an endpoint, oldest first."""
        attempts = defaultdict[UUID, list[Attempt]](list)
        for row in await self._connection.fetch(OF_MESSAGES, endpoint_id, message_ids):
            members = dict(row)
            attempts[members.pop("message_id")].append(Attempt(**members))
        return attempts
