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
from service.repositories.connection import Repository

NOTE: Final = """
    INSERT INTO signals (participant_id, kind, hash, seen_at)
    SELECT $1, kind, hash, $4
      FROM unnest($2::text[], $3::bytea[]) AS told (kind, hash)
    ON CONFLICT (participant_id, kind, hash) DO UPDATE SET seen_at = excluded.seen_at
"""

# What a sign-up has in common with its referrer $1, and with others of the referrer than $2.
COMPARE: Final = """
    SELECT COALESCE((SELECT trusted FROM participants WHERE participant_id = $1), false) AS trusted,
           EXISTS (SELECT FROM signals
                    WHERE participant_id = $1 AND kind = 'email' AND hash = $3) AS self_referral,
           EXISTS (SELECT FROM signals
                    WHERE participant_id = $1 AND kind = 'device' AND hash = $4)
           OR EXISTS (SELECT
                        FROM signals s
                        JOIN referrals r ON r.user_id = s.participant_id
                       WHERE s.hash = $4 AND s.kind = 'device'
                         AND r.referrer_id = $1 AND r.user_id <> $2) AS same_device,
           EXISTS (SELECT FROM signals
                    WHERE participant_id = $1 AND kind = 'ip' AND hash = $5 AND seen_at >= $6)
           OR (SELECT count(*)
                 FROM (SELECT
                         FROM signals s
                         JOIN referrals r ON r.user_id = s.participant_id
                        WHERE s.hash = $5 AND s.kind = 'ip' AND s.seen_at >= $7
                          AND r.referrer_id = $1 AND r.user_id <> $2
                        LIMIT 2) AS others) = 2 AS same_ip,
           (SELECT count(*)
              FROM (SELECT
                      FROM referrals
                     WHERE referrer_id = $1 AND user_id <> $2
                       AND registered_at > $8::timestamptz - interval '1 hour'
                       AND registered_at <= $8
                     LIMIT $9) AS others) = $9 AS velocity
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
        row = await self._connection.fetchrow(
            COMPARE,
            new.referrer_id,
            new.referee_id,
            new.signals.get("email"),
            new.signals.get("device"),
            new.signals.get("ip"),
            now - REFERRER_SEEN_WITHIN,
            now - REFEREES_SEEN_WITHIN,
            new.registered_at,
            MOST_WITHIN_AN_HOUR,
        )
        assert row is not None
        return (
            None
            if row["trusted"]
            else Suspicions(
                self_referral=row["self_referral"] or new.flagged,
                same_device=row["same_device"],
                same_ip=row["same_ip"],
                disposable_email=new.disposable_email,
                velocity=row["velocity"],
            )
        )

    async def delete_of_participant(self, participant_id: UUID) -> None:
        await self._connection.execute(DELETE_OF_PARTICIPANT, participant_id)

    async def delete_old(self, before: datetime) -> int:
        """Delete up to 1,000 signals seen before then, but no email addresses."""
        status = await self._connection.execute(DELETE_OLD, before)
        return int(status.rpartition(" ")[2])
