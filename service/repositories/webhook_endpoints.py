"""The SQL of webhook endpoints."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from service.domain.webhook_deliveries import DisabledReason, Endpoint, EndpointCounts
from service.repositories.connection import Repository, rows_in

_COLUMNS: Final = """
    endpoint_id, url, types, secret_number, previous_until, failing_since, disabled_at,
    disabled_reason, created_at
"""

FREE_SLOTS: Final = """
    SELECT slot
      FROM generate_series(1, 20) AS places (slot)
     WHERE NOT EXISTS (SELECT FROM webhook_endpoints e
                        WHERE e.slot = places.slot AND e.deleted_at IS NULL)
     ORDER BY slot
"""

ADD: Final = """
    INSERT INTO webhook_endpoints (endpoint_id, slot, url, types, created_at)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (slot) WHERE deleted_at IS NULL DO NOTHING
"""

LIST_ALL: Final = f"""
    SELECT {_COLUMNS}
      FROM webhook_endpoints
     WHERE deleted_at IS NULL
     ORDER BY created_at DESC, endpoint_id DESC
"""

FIND: Final = f"""
    SELECT {_COLUMNS}
      FROM webhook_endpoints
     WHERE endpoint_id = $1
       AND deleted_at IS NULL
"""

# Another URL is another receiver, and so is one that is enabled again: neither has failed yet.
CHANGE: Final = f"""
    UPDATE webhook_endpoints
       SET url = coalesce($2, url),
           types = coalesce($3, types),
           disabled_at = CASE WHEN $4::boolean IS NULL THEN disabled_at
                              WHEN $4 THEN coalesce(disabled_at, $5) END,
           disabled_reason = CASE WHEN $4::boolean IS NULL THEN disabled_reason
                                  WHEN $4 THEN coalesce(disabled_reason, $6) END,
           failing_since = CASE WHEN $2 IS NULL AND $4 IS NOT FALSE THEN failing_since END,
           resume_at = CASE WHEN $2 IS NULL AND $4 IS NOT FALSE THEN resume_at END
     WHERE endpoint_id = $1
       AND deleted_at IS NULL
    RETURNING {_COLUMNS}
"""

DELETE: Final = """
    UPDATE webhook_endpoints
       SET deleted_at = $2,
           disabled_at = coalesce(disabled_at, $2),
           disabled_reason = coalesce(disabled_reason, $3)
     WHERE endpoint_id = $1
       AND deleted_at IS NULL
"""

# Of two rotations at once the second finds that the previous secret still signs.
ROTATE: Final = f"""
    UPDATE webhook_endpoints
       SET secret_number = secret_number + 1, previous_until = $3
     WHERE endpoint_id = $1
       AND deleted_at IS NULL
       AND (previous_until IS NULL OR previous_until <= $2 OR $3::timestamptz IS NULL)
    RETURNING {_COLUMNS}
"""

DISABLE: Final = """
    UPDATE webhook_endpoints
       SET disabled_at = $2, disabled_reason = $3
     WHERE endpoint_id = $1
       AND disabled_at IS NULL
"""

# One message alone may be what the receiver cannot digest.
DISABLE_FAILING: Final = """
    UPDATE webhook_endpoints e
       SET disabled_at = $2, disabled_reason = $3
     WHERE e.endpoint_id = $1
       AND e.disabled_at IS NULL
       AND e.failing_since <= $4
       AND 2 <= (SELECT count(*)
                   FROM (SELECT DISTINCT d.message_id
                           FROM webhook_deliveries d
                           JOIN webhook_attempts a USING (message_id, endpoint_id)
                          WHERE d.endpoint_id = e.endpoint_id
                            AND d.state <> 'delivered'
                            AND a.attempted_at >= e.failing_since
                          LIMIT 2) AS failed)
"""

COUNT: Final = """
    SELECT count(*) FILTER (WHERE disabled_at IS NULL AND failing_since IS NULL) AS live,
           count(*) FILTER (WHERE disabled_at IS NULL AND failing_since IS NOT NULL) AS resting,
           count(*) FILTER (WHERE disabled_at IS NOT NULL) AS disabled
      FROM webhook_endpoints
     WHERE deleted_at IS NULL
"""


class WebhookEndpointRepository(Repository):
    """Webhook endpoints, one statement a method. Deleted ones are found by none."""

    async def free_slots(self) -> Sequence[int]:
        """Return the places that no endpoint has."""
        return [row["slot"] for row in await self._connection.fetch(FREE_SLOTS)]

    async def add(self, endpoint: Endpoint, slot: int) -> bool:
        """Store an endpoint; return False if another one has taken its place."""
        status = await self._connection.execute(
            ADD, endpoint.endpoint_id, slot, endpoint.url, endpoint.types, endpoint.created_at
        )
        return rows_in(status) == 1

    async def list_all(self) -> list[Endpoint]:
        """Return all endpoints, newest first: there are twenty at most."""
        return [_known(row) for row in await self._connection.fetch(LIST_ALL)]

    async def find(self, endpoint_id: UUID) -> Endpoint | None:
        return _endpoint(await self._connection.fetchrow(FIND, endpoint_id))

    async def change(
        self,
        endpoint_id: UUID,
        url: str | None,
        types: Sequence[str] | None,
        disabled: bool | None,
        now: datetime,
    ) -> Endpoint | None:
        """Change what is given, and return the endpoint; None if there is none."""
        return _endpoint(
            await self._connection.fetchrow(
                CHANGE, endpoint_id, url, types, disabled, now, DisabledReason.REQUESTED
            )
        )

    async def delete(self, endpoint_id: UUID, now: datetime) -> bool:
        """Delete an endpoint; return False if there is none."""
        status = await self._connection.execute(DELETE, endpoint_id, now, DisabledReason.DELETED)
        return rows_in(status) == 1

    async def rotate(
        self, endpoint_id: UUID, now: datetime, previous_until: datetime | None
    ) -> Endpoint | None:
        """Count to the next secret; the one before signs along until then, or no longer.

        Returns None, and changes nothing, if there is no such endpoint, or `previous_until` is
        given while an older secret still signs.
        """
        return _endpoint(await self._connection.fetchrow(ROTATE, endpoint_id, now, previous_until))

    async def disable(self, endpoint_id: UUID, reason: DisabledReason, now: datetime) -> bool:
        """Disable an endpoint; return False if it is disabled already."""
        return rows_in(await self._connection.execute(DISABLE, endpoint_id, now, reason)) == 1

    async def disable_failing(
        self, endpoint_id: UUID, failing_since: datetime, now: datetime
    ) -> bool:
        """Disable an endpoint whose attempts have all failed since then, or longer.

        Returns False if they have not, or were all of one message.
        """
        status = await self._connection.execute(
            DISABLE_FAILING, endpoint_id, now, DisabledReason.FAILING, failing_since
        )
        return rows_in(status) == 1

    async def count(self) -> EndpointCounts:
        row = await self._connection.fetchrow(COUNT)
        assert row is not None
        return EndpointCounts(**row)


def _endpoint(row: Any) -> Endpoint | None:
    return None if row is None else _known(row)


def _known(row: Any) -> Endpoint:
    reason = row["disabled_reason"]
    return Endpoint(**{**row, "disabled_reason": reason and DisabledReason(reason)})
