"""The SQL of signals: keyed hashes by which fraud rules compare people."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.fraud import (
    MOST_WITHIN_AN_HOUR,
    REFEREES_SEEN_WITHIN,
    REFERRER_SEEN_WITHIN,
    Suspicions,
)
from service.domain.referrals import NewReferral
from service.repositories.connection import Repository, rows_in

NOTE: Final = """
    INSERT INTO signals (participant_id, kind, hash, seen_at)
    SELECT $1, kind, hash, $4
      FROM unnest($2::text[], $3::bytea[]) AS told (kind, hash)
    ON CONFLICT (participant_id, kind, hash) DO UPDATE SET seen_at = excluded.seen_at
"""

_KNOWN: Final = f"""
    SELECT COALESCE((SELECT trusted FROM participants WHERE participant_id = $1), false) AS trusted,
           EXISTS (SELECT FROM referrals
                    WHERE referrer_id = $1 AND mailbox_hash = $3) AS same_mailbox,
           (SELECT count(*)
              FROM (SELECT
                      FROM referrals
                     WHERE referrer_id = $1
                       AND registered_at > $2::timestamptz - interval '1 hour'
                       AND registered_at <= $2
                     LIMIT {MOST_WITHIN_AN_HOUR}) AS others) = {MOST_WITHIN_AN_HOUR} AS velocity
"""

# What a new sign-up has in common with its referrer $1, and with the referrer's other referees.
COMPARE: Final = f"""
    {_KNOWN},
           EXISTS (SELECT FROM signals
                    WHERE participant_id = $1 AND kind = 'email' AND hash = $4) AS same_email,
           EXISTS (SELECT FROM signals
                    WHERE participant_id = $1 AND kind = 'device' AND hash = $5)
           OR EXISTS (SELECT
                        FROM signals s
                        JOIN referrals r ON r.user_id = s.participant_id
                       WHERE s.hash = $5 AND s.kind = 'device' AND r.referrer_id = $1)
           AS same_device,
           EXISTS (SELECT FROM signals
                    WHERE participant_id = $1 AND kind = 'ip' AND hash = $6 AND seen_at >= $7)
           OR (SELECT count(*)
                 FROM (SELECT
                         FROM signals s
                         JOIN referrals r ON r.user_id = s.participant_id
                        WHERE s.hash = $6 AND s.kind = 'ip' AND s.seen_at >= $8
                          AND r.referrer_id = $1
                        LIMIT 2) AS others) = 2 AS same_ip
"""

# The same where nothing is known of the person: PostgreSQL plans COMPARE anew each time.
COMPARE_UNKNOWN: Final = f"""
    {_KNOWN},
           false AS same_email, false AS same_device, false AS same_ip
"""

DELETE_OF_PARTICIPANT: Final = """
    DELETE FROM signals
     WHERE participant_id = $1
"""

# An email address stays as long as its participant.
DELETE_OLD: Final = """
    WITH old AS (
        SELECT participant_id, kind, hash
          FROM signals
         WHERE seen_at < $1
           AND kind <> 'email'
         ORDER BY seen_at
         LIMIT 1000
    )
    DELETE FROM signals s
     USING old
     WHERE (s.participant_id, s.kind, s.hash) = (old.participant_id, old.kind, old.hash)
"""


class SignalRepository(Repository):
    """Signals, one statement a method."""

    async def note(self, participant_id: UUID, signals: Mapping[str, bytes], now: datetime) -> None:
        """Store signals by kind, as seen now."""
        await self._connection.execute(
            NOTE, participant_id, list(signals), list(signals.values()), now
        )

    async def compare(self, new: NewReferral, now: datetime) -> Suspicions | None:
        """Return what is suspicious about a sign-up; None: its referrer is trusted."""
        known = new.taken.owner_id, new.registered_at, new.mailbox_hash
        if new.signals:
            row = await self._connection.fetchrow(
                COMPARE,
                *known,
                new.signals.get("email"),
                new.signals.get("device"),
                new.signals.get("ip"),
                now - REFERRER_SEEN_WITHIN,
                now - REFEREES_SEEN_WITHIN,
            )
        else:
            row = await self._connection.fetchrow(COMPARE_UNKNOWN, *known)
        assert row is not None
        if row["trusted"]:
            return None
        return Suspicions(
            self_referral=new.flagged or row["same_mailbox"] or row["same_email"],
            same_device=row["same_device"],
            same_ip=row["same_ip"],
            disposable_email=new.disposable_email,
            velocity=row["velocity"],
        )

    async def delete_of_participant(self, participant_id: UUID) -> None:
        await self._connection.execute(DELETE_OF_PARTICIPANT, participant_id)

    async def delete_old(self, before: datetime) -> int:
        """Delete up to 1,000 signals seen before then, but no email addresses."""
        return rows_in(await self._connection.execute(DELETE_OLD, before))
