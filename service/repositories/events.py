"""The SQL of events."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from service.domain.events import Event
from service.domain.pages import Cursor
from service.domain.programmes import Minimum
from service.repositories.connection import Repository

ADD: Final = """
    INSERT INTO events
           (event_id, programme_id, external_id, participant_id, type, amount, unit, refunds,
            occurred_at, received_at, fingerprint)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT ON CONSTRAINT events_happen_once DO NOTHING
    RETURNING event_id
"""

FIND: Final = """
    SELECT event_id, programme_id, external_id, participant_id, type, amount, unit, refunds,
           occurred_at, received_at, fingerprint
      FROM events
     WHERE programme_id = $1
       AND external_id = $2
"""

# What is reported of an erased participant `$1` takes back, but earns nothing.
_BEFORE_ERASURE: Final = """
    e.received_at <= COALESCE(
        (SELECT erased_at FROM participants WHERE participant_id = $1), 'infinity')
"""

# Events with what is known of their refunds.
_COUNTED: Final = """
        SELECT e.event_id, e.programme_id, e.external_id, e.participant_id, e.type, e.amount,
               e.unit, e.refunds, e.occurred_at, e.received_at,
               COALESCE(r.refunded, 0)::bigint AS refunded,
               COALESCE(r.taken_back, false) AS taken_back
          FROM events e
         CROSS JOIN LATERAL (
                SELECT sum(amount) FILTER (WHERE unit = e.unit) AS refunded,
                       bool_or(amount IS NULL) AS taken_back
                  FROM events
                 WHERE programme_id = e.programme_id
                   AND refunds = e.external_id
                   AND participant_id = e.participant_id
               ) AS r
"""

# Of these something is left.
_STANDS: Final = """
        NOT taken_back AND (amount IS NULL OR refunded = 0 OR amount - refunded > 0)
"""

# Of two at the same instant the company's id decides, whichever was reported first.
# The earliest event that qualifies, and the earliest that would without its refunds: all that is
# needed of a referee's events, however many there are.
THAT_DECIDE: Final = f"""
    WITH counted AS NOT MATERIALIZED (
        {_COUNTED}
         WHERE e.participant_id = $1
           AND e.type = $2
           AND e.occurred_at >= $3
           AND e.occurred_at < COALESCE($4::timestamptz, 'infinity')
           AND {_BEFORE_ERASURE}
           AND ($5::bigint IS NULL OR (e.amount >= $5 AND e.unit = $6))
         ORDER BY e.occurred_at, e.external_id COLLATE "C"
    )
    (SELECT * FROM counted LIMIT 1)
    UNION ALL
    (SELECT *
       FROM counted
      WHERE {_STANDS}
        AND ($5::bigint IS NULL OR amount - refunded >= $5)
      LIMIT 1)
"""

THAT_COUNT: Final = f"""
    WITH counted AS NOT MATERIALIZED (
        {_COUNTED}
         WHERE e.participant_id = $1
           AND e.type = $2
           AND e.occurred_at >= $3
           AND e.occurred_at < COALESCE($4::timestamptz, 'infinity')
           AND {_BEFORE_ERASURE}
           AND ($5::text IS NULL OR e.unit = $5)
         ORDER BY e.occurred_at, e.external_id COLLATE "C"
    )
    SELECT *
      FROM counted
     WHERE {_STANDS}
     LIMIT $6
"""

FIND_COUNTED: Final = f"""
    {_COUNTED}
     WHERE e.programme_id = $2
       AND e.external_id = $3
       AND e.participant_id = $1
       AND {_BEFORE_ERASURE}
"""

NEWEST_OF_PARTICIPANT: Final = """
    SELECT event_id, programme_id, external_id, participant_id, type, amount, unit, refunds,
           occurred_at, received_at
      FROM events
     WHERE participant_id = $1
     ORDER BY occurred_at DESC, event_id DESC
     LIMIT $2
"""

# Those who are just signing up, and may qualify by an old event, are passed by.
LOCK_OLD: Final = """
    SELECT p.participant_id
      FROM participants p
     WHERE p.participant_id IN (
            SELECT participant_id
              FROM events
             WHERE (received_at, event_id) > ($1, $2)
               AND received_at < $3
             ORDER BY received_at, event_id
             LIMIT 1000
           )
       FOR NO KEY UPDATE SKIP LOCKED
"""

# Those that are looked at and stay are not looked at again: the next call begins after the last.
DELETE_OF_NOBODY: Final = """
    WITH looked_at AS (
        SELECT event_id, participant_id, received_at
          FROM events
         WHERE (received_at, event_id) > ($1, $2)
           AND received_at < $3
         ORDER BY received_at, event_id
         LIMIT 1000
    ), deleted AS (
        DELETE FROM events e
         USING looked_at l
         WHERE e.event_id = l.event_id
           AND l.participant_id = ANY ($4)
           AND NOT EXISTS (SELECT FROM referrals WHERE user_id = l.participant_id)
    )
    SELECT received_at, event_id
      FROM looked_at
     ORDER BY received_at DESC, event_id DESC
     LIMIT 1
"""


class EventRepository(Repository):
    """Events, one statement a method. None is ever changed."""

    async def add(self, event: Event, fingerprint: bytes) -> bool:
        """Store an event; return False if its id is known, of this event or of another."""
        added = await self._connection.fetchval(
            ADD,
            event.event_id,
            event.programme_id,
            event.external_id,
            event.participant_id,
            event.type,
            event.amount,
            event.unit,
            event.refunds,
            event.occurred_at,
            event.received_at,
            fingerprint,
        )
        return added is not None

    async def find(self, programme_id: UUID, external_id: str) -> tuple[Event, bytes] | None:
        """Return an event by the company's id of it, with its fingerprint."""
        row = await self._connection.fetchrow(FIND, programme_id, external_id)
        if row is None:
            return None
        members = dict(row)
        fingerprint: bytes = members.pop("fingerprint")
        return Event(**members), fingerprint

    async def that_decide(
        self,
        participant_id: UUID,
        event_type: str,
        since: datetime,
        until: datetime | None,
        minimum: Minimum | None,
    ) -> Sequence[Event]:
        """Return what `assess` needs of a referee's events, with what is known of their refunds.

        Without a minimum an event of any worth counts.
        """
        rows = await self._connection.fetch(
            THAT_DECIDE,
            participant_id,
            event_type,
            since,
            until,
            None if minimum is None else minimum.amount,
            None if minimum is None else minimum.unit,
        )
        return list(map(_event, rows))

    async def that_count(
        self,
        participant_id: UUID,
        event_type: str,
        since: datetime,
        until: datetime | None,
        unit: str | None,
        limit: int | None,
    ) -> Sequence[Event]:
        """Return the earliest events of a type of which something is left; None: any or all."""
        rows = await self._connection.fetch(
            THAT_COUNT, participant_id, event_type, since, until, unit, limit
        )
        return list(map(_event, rows))

    async def find_counted(
        self, programme_id: UUID, external_id: str, participant_id: UUID
    ) -> Event | None:
        """Return a participant's event with what is known of its refunds."""
        return await self._one(_event, FIND_COUNTED, participant_id, programme_id, external_id)

    async def newest_of_participant(self, participant_id: UUID, limit: int) -> Sequence[Event]:
        rows = await self._connection.fetch(NEWEST_OF_PARTICIPANT, participant_id, limit)
        return list(map(_event, rows))

    async def lock_old(self, after: Cursor, before: datetime) -> Sequence[UUID]:
        """Return whose events `delete_of_nobody` looks at, locked, but not who is locked already.

        Who signs up from now on waits, and does not see what is deleted.
        """
        rows = await self._connection.fetch(LOCK_OLD, after.at, after.row_id, before)
        return [row["participant_id"] for row in rows]

    async def delete_of_nobody(
        self, after: Cursor, before: datetime, locked: Sequence[UUID]
    ) -> Cursor | None:
        """Delete those of up to 1,000 events from before then whose participant nobody referred.

        Begins after an event, and returns the last one looked at; None: there are no more. Only
        those of `locked` participants, whom `lock_old` returns, are deleted.
        """
        row = await self._connection.fetchrow(
            DELETE_OF_NOBODY, after.at, after.row_id, before, locked
        )
        return None if row is None else Cursor(row["received_at"], row["event_id"])


def _event(row: Any) -> Event:
    return Event(**row)
