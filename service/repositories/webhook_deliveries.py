"""The SQL of webhook deliveries, each of which has a job while it is pending."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.pages import Cursor
from service.domain.webhook_deliveries import (
    Delivery,
    DeliveryState,
    FailureReason,
    Outcome,
    ShownDelivery,
)
from service.repositories.connection import LAST_ID, Repository, rows_in

REPLAYED_AT_ONCE: Final = 1000

# Each endpoint is looked at by itself: what waits for one that rests is in nobody's way. They take
# turns, so that a backlog of one does not hold up the others. Of a failing one, whoever locks its
# row first sends one delivery, and pushes its rest out meanwhile. The rows of the others are locked
# as well: who disables one, or rotates its secret, waits for this, and then sees what is claimed.
CLAIM: Final = """
    WITH ready AS (
        SELECT e.endpoint_id,
               CASE WHEN e.failing_since IS NULL THEN coalesce(room.places, $4)
                    ELSE least(coalesce(room.places, $4), 1) END AS places
          FROM webhook_endpoints e
          LEFT JOIN unnest($5::uuid[], $6::integer[]) AS room (endpoint_id, places)
               USING (endpoint_id)
         WHERE e.disabled_at IS NULL
           AND (e.failing_since IS NULL OR e.resume_at <= $1)
    ), due AS (
        SELECT job.job_id, r.endpoint_id,
               row_number() OVER (PARTITION BY r.endpoint_id ORDER BY job.due_at) AS turn
          FROM ready r
         CROSS JOIN LATERAL (
                SELECT job_id, due_at
                  FROM jobs
                 WHERE kind = 'delivery'
                   AND payload ->> 'endpoint_id' = r.endpoint_id::text
                   AND due_at <= $1
                 ORDER BY due_at
                 LIMIT r.places
                   FOR UPDATE SKIP LOCKED
               ) AS job
         ORDER BY turn, job.due_at
         LIMIT $3
    ), live AS (
        SELECT endpoint_id, url, secret_number, previous_until, failing_since
          FROM webhook_endpoints
         WHERE endpoint_id IN (SELECT endpoint_id FROM due)
           AND disabled_at IS NULL
           AND failing_since IS NULL
           FOR SHARE SKIP LOCKED
    ), probing AS (
        SELECT endpoint_id, url, secret_number, previous_until, failing_since
          FROM webhook_endpoints
         WHERE endpoint_id IN (SELECT endpoint_id FROM due)
           AND disabled_at IS NULL
           AND resume_at <= $1
           FOR NO KEY UPDATE SKIP LOCKED
    ), locked AS (
        SELECT endpoint_id, url, secret_number, previous_until, failing_since FROM live
         UNION ALL
        SELECT endpoint_id, url, secret_number, previous_until, failing_since FROM probing
    ), probed AS (
        UPDATE webhook_endpoints
           SET resume_at = $2
         WHERE endpoint_id IN (SELECT endpoint_id FROM probing)
    ), claimed AS (
        UPDATE jobs
           SET tries = tries + 1, due_at = $2, last_error = NULL
         WHERE job_id IN (SELECT job_id FROM due JOIN locked USING (endpoint_id))
        RETURNING job_id, tries, payload
    )
    SELECT c.job_id, c.tries, (c.payload ->> 'message_id')::uuid AS message_id, m.body,
           l.endpoint_id, l.url, l.secret_number, l.previous_until, l.failing_since
      FROM claimed c
      JOIN due USING (job_id)
      JOIN locked l USING (endpoint_id)
      LEFT JOIN webhook_messages m ON m.message_id = (c.payload ->> 'message_id')::uuid
"""

# Unless another worker has claimed the job since, because this one took too long.
SUCCEED: Final = """
    WITH done AS (
        DELETE FROM jobs
         WHERE job_id = $1
           AND tries = $2
        RETURNING job_id
    ), delivery AS (
        UPDATE webhook_deliveries
           SET attempts = attempts + 1,
               state = CASE WHEN EXISTS (SELECT FROM done) THEN 'delivered' ELSE state END
         WHERE message_id = $3
           AND endpoint_id = $4
        RETURNING attempts
    ), recovered AS (
        UPDATE webhook_endpoints
           SET failing_since = NULL, resume_at = NULL
         WHERE endpoint_id = $4
           AND failing_since IS NOT NULL
    )
    INSERT INTO webhook_attempts
           (message_id, endpoint_id, attempt, status, error, milliseconds, attempted_at)
    SELECT $3, $4, attempts, $5, NULL, $6, $7
      FROM delivery
"""

# Without $10, when it is due again, the delivery has failed. The rest that a probe ends by failing
# is over; any other failure only makes it longer.
FAIL: Final = """
    WITH postponed AS (
        UPDATE jobs
           SET due_at = $10, last_error = coalesce($6, $5::smallint::text)
         WHERE job_id = $1
           AND tries = $2
           AND $10::timestamptz IS NOT NULL
    ), ended AS (
        DELETE FROM jobs
         WHERE job_id = $1
           AND tries = $2
           AND $10 IS NULL
        RETURNING job_id
    ), delivery AS (
        UPDATE webhook_deliveries
           SET attempts = attempts + 1,
               state = CASE WHEN EXISTS (SELECT FROM ended) THEN 'failed' ELSE state END,
               reason = CASE WHEN EXISTS (SELECT FROM ended) THEN $11 ELSE reason END
         WHERE message_id = $3
           AND endpoint_id = $4
        RETURNING attempts
    ), logged AS (
        INSERT INTO webhook_attempts
               (message_id, endpoint_id, attempt, status, error, milliseconds, attempted_at)
        SELECT $3, $4, attempts, $5::smallint, $6, $7, $8
          FROM delivery
    )
    UPDATE webhook_endpoints
       SET failing_since = coalesce(failing_since, $8),
           resume_at = CASE WHEN $12 THEN $9 ELSE greatest(resume_at, $9) END
     WHERE endpoint_id = $4
       AND disabled_at IS NULL
    RETURNING failing_since
"""

# Not those under way: how they end is not known yet.
END_OF_DISABLED: Final = """
    WITH ended AS (
        DELETE FROM jobs
         WHERE job_id = ANY (ARRAY(
                SELECT job.job_id
                  FROM webhook_endpoints e
                 CROSS JOIN LATERAL (
                        SELECT job_id
                          FROM jobs
                         WHERE kind = 'delivery'
                           AND payload ->> 'endpoint_id' = e.endpoint_id::text
                           AND NOT (tries > 0 AND last_error IS NULL AND due_at > $1)
                         LIMIT 1000
                           FOR UPDATE SKIP LOCKED
                       ) AS job
                 WHERE e.disabled_at IS NOT NULL
                 LIMIT 1000))
        RETURNING (payload ->> 'message_id')::uuid AS message_id,
                  (payload ->> 'endpoint_id')::uuid AS endpoint_id
    )
    UPDATE webhook_deliveries d
       SET state = 'failed', reason = $2
      FROM ended
     WHERE d.message_id = ended.message_id
       AND d.endpoint_id = ended.endpoint_id
"""

# Of two who ask at once one finds it pending already.
RETRY: Final = """
    WITH sooner AS (
        UPDATE jobs
           SET due_at = $3
         WHERE kind = 'delivery'
           AND payload ->> 'endpoint_id' = $1::uuid::text
           AND payload ->> 'message_id' = $2::uuid::text
           AND (tries = 0 OR last_error IS NOT NULL)
    ), again AS (
        UPDATE webhook_deliveries
           SET state = 'pending', reason = NULL
         WHERE endpoint_id = $1
           AND message_id = $2
           AND state <> 'pending'
        RETURNING message_id
    ), planned AS (
        INSERT INTO jobs (job_id, kind, payload, created_at, due_at)
        SELECT $4, 'delivery', jsonb_build_object('message_id', $2, 'endpoint_id', $1), $3, $3
          FROM again
    )
    SELECT EXISTS (SELECT FROM webhook_deliveries WHERE endpoint_id = $1 AND message_id = $2)
"""


def _replay(which: str) -> str:
    return f"""
        WITH again AS (
            UPDATE webhook_deliveries d
               SET state = 'pending', reason = NULL
              FROM (SELECT message_id, created_at
                      FROM webhook_deliveries
                     WHERE endpoint_id = $1
                       AND {which}
                       AND (created_at, message_id) > ($2, $3)
                       AND created_at <= $4
                     ORDER BY created_at, message_id
                     LIMIT {REPLAYED_AT_ONCE}
                       FOR UPDATE) AS old
             WHERE d.endpoint_id = $1
               AND d.message_id = old.message_id
            RETURNING d.message_id, d.created_at
        ), numbered AS (
            SELECT message_id, row_number() OVER (ORDER BY created_at, message_id) AS place
              FROM again
        ), planned AS (
            INSERT INTO jobs (job_id, kind, payload, created_at, due_at)
            SELECT job_id, 'delivery',
                   jsonb_build_object('message_id', message_id, 'endpoint_id', $1), $4, $4
              FROM numbered
              JOIN unnest($5::uuid[]) WITH ORDINALITY AS ids (job_id, place) USING (place)
        )
        SELECT message_id, created_at
          FROM again
         ORDER BY created_at DESC, message_id DESC
    """


REPLAY_FAILED: Final = _replay("state = 'failed'")
REPLAY_ENDED: Final = _replay("state IN ('delivered', 'failed')")

_NEWEST: Final = """
    SELECT d.message_id, m.type, d.state, d.reason, d.created_at
      FROM webhook_deliveries d
      JOIN webhook_messages m USING (message_id)
     WHERE d.endpoint_id = $1
       AND (d.created_at, d.message_id)
           < (coalesce($2::timestamptz, 'infinity'), coalesce($3::uuid, $5))
"""

NEWEST: Final = f"""
    {_NEWEST}
       AND ($6::text IS NULL OR d.state = $6)
     ORDER BY d.created_at DESC, d.message_id DESC
     LIMIT $4
"""

NEWEST_UNDELIVERED: Final = f"""
    {_NEWEST}
       AND d.state <> 'delivered'
       AND d.state = $6
     ORDER BY d.created_at DESC, d.message_id DESC
     LIMIT $4
"""


class WebhookDeliveryRepository(Repository):
    """Webhook deliveries, one statement a method."""

    async def claim(
        self, now: datetime, until: datetime, limit: int, places: int, places_of: Mapping[UUID, int]
    ) -> list[Delivery]:
        """Claim up to `limit` deliveries that are due, `until` then.

        Of each endpoint at most `places_of` it, or `places`; one of a failing endpoint whose rest
        is over, for which the others wait; none of one that rests or is disabled.
        """
        rows = await self._connection.fetch(
            CLAIM, now, until, limit, places, list(places_of), list(places_of.values())
        )
        return [Delivery(**row) for row in rows]

    async def succeed(self, delivery: Delivery, outcome: Outcome, at: datetime) -> None:
        """Log an attempt that was made then, and end its delivery."""
        await self._connection.execute(
            SUCCEED,
            delivery.job_id,
            delivery.tries,
            delivery.message_id,
            delivery.endpoint_id,
            outcome.status,
            outcome.milliseconds,
            at,
        )

    async def fail(
        self,
        delivery: Delivery,
        outcome: Outcome,
        at: datetime,
        resume_at: datetime,
        due_at: datetime | None,
        reason: FailureReason,
    ) -> datetime | None:
        """Log an attempt that was made then, and let its endpoint rest.

        The delivery is due again at `due_at`, or has failed for that reason. Returns since when the
        endpoint fails; None if it is disabled.
        """
        failing_since: datetime | None = await self._connection.fetchval(
            FAIL,
            delivery.job_id,
            delivery.tries,
            delivery.message_id,
            delivery.endpoint_id,
            outcome.status,
            outcome.error,
            outcome.milliseconds,
            at,
            resume_at,
            due_at,
            reason,
            delivery.is_probe,
        )
        return failing_since

    async def end_of_disabled(self, now: datetime) -> int:
        """End up to 1,000 deliveries that wait for disabled endpoints; return how many."""
        return rows_in(await self._connection.execute(END_OF_DISABLED, now, FailureReason.DISABLED))

    async def retry(self, endpoint_id: UUID, message_id: UUID, now: datetime) -> bool:
        """Make a delivery due, whatever became of it; return False if there is none."""
        return bool(await self._connection.fetchval(RETRY, endpoint_id, message_id, now, uuid7()))

    async def replay(
        self, endpoint_id: UUID, after: Cursor, now: datetime, *, only_failed: bool
    ) -> list[Cursor]:
        """Make deliveries after the cursor due that have ended, up to 1,000; return their places.

        The last one comes first.
        """
        rows = await self._connection.fetch(
            REPLAY_FAILED if only_failed else REPLAY_ENDED,
            endpoint_id,
            after.at,
            after.row_id,
            now,
            [uuid7() for _ in range(REPLAYED_AT_ONCE)],
        )
        return [Cursor(row["created_at"], row["message_id"]) for row in rows]

    async def newest(
        self, endpoint_id: UUID, state: DeliveryState | None, limit: int, after: Cursor | None
    ) -> list[ShownDelivery]:
        """Return up to `limit` deliveries of an endpoint, newest first, without their attempts."""
        delivered = state in {None, DeliveryState.DELIVERED}
        rows = await self._connection.fetch(
            NEWEST if delivered else NEWEST_UNDELIVERED,
            endpoint_id,
            after and after.at,
            after and after.row_id,
            limit,
            LAST_ID,
            state,
        )
        return [_shown(row) for row in rows]


def _shown(row: Any) -> ShownDelivery:
    return ShownDelivery(**{**row, "state": DeliveryState(row["state"])}, attempts=())
