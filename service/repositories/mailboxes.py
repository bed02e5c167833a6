"""The SQL of mailboxes: how many mails were sent to each."""

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from service.domain.mails import (
    KEPT_FOR_RESETS_A_DAY,
    KEPT_FOR_RESETS_AN_HOUR,
    MAILS_COUNTED_FOR,
    MOST_MAILS_A_DAY,
    MOST_MAILS_AN_HOUR,
    Share,
)
from service.repositories.connection import Repository

# One statement, which locks the row before it looks: parallel workers send no more than one worker
# would. $5 and $6 are an hour and a day ago, $7 to $10 the limits. Tries of one job count once.
COUNT: Final = """
    INSERT INTO mailboxes AS box (mailbox_hash, job_ids, sent_at, are_resets, counted_at)
    VALUES ($1, ARRAY[$2::uuid], ARRAY[$3::timestamptz], ARRAY[$4 = 'reset'], $3)
    ON CONFLICT (mailbox_hash) DO UPDATE
       SET (job_ids, sent_at, are_resets, counted_at) = (
            SELECT array_agg(job_id), array_agg(at), array_agg(is_reset), $3
              FROM (SELECT $2 AS job_id, $3 AS at, $4 = 'reset' AS is_reset
                     UNION ALL
                   (SELECT job_id, at, is_reset
                      FROM unnest(box.job_ids, box.sent_at, box.are_resets)
                           AS mail (job_id, at, is_reset)
                     WHERE at > $6
                       AND job_id <> $2
                     ORDER BY at DESC
                     LIMIT $8)) AS kept
           )
     WHERE (
            SELECT CASE $4
                   WHEN 'notice' THEN true
                   WHEN 'reset' THEN (hour < $7 OR hour_resets < $9)
                                 AND (day < $8 OR day_resets < $10)
                   ELSE hour < $7 AND hour - hour_resets < $7 - $9
                    AND day < $8 AND day - day_resets < $8 - $10
                   END
              FROM (SELECT count(*) FILTER (WHERE at > $5) AS hour,
                           count(*) FILTER (WHERE at > $5 AND is_reset) AS hour_resets,
                           count(*) AS day,
                           count(*) FILTER (WHERE is_reset) AS day_resets
                      FROM unnest(box.job_ids, box.sent_at, box.are_resets)
                           AS mail (job_id, at, is_reset)
                     WHERE at > $6
                       AND job_id <> $2) AS sent
           )
    RETURNING mailbox_hash
"""

TAKE_BACK: Final = """
    UPDATE mailboxes
       SET (job_ids, sent_at, are_resets) = (
            SELECT COALESCE(array_agg(job_id), '{}'), COALESCE(array_agg(at), '{}'),
                   COALESCE(array_agg(is_reset), '{}')
              FROM unnest(job_ids, sent_at, are_resets) AS mail (job_id, at, is_reset)
             WHERE job_id <> $2
           )
     WHERE mailbox_hash = $1
"""


class MailboxRepository(Repository):
    """Mailboxes, one statement per method."""

    async def count(self, mailbox_hash: bytes, job_id: UUID, share: Share, now: datetime) -> bool:
        """Count a job's mail, which is about to be sent; return whether it may be sent."""
        return await self._found(
            COUNT,
            mailbox_hash,
            job_id,
            now,
            share,
            now - timedelta(hours=1),
            now - MAILS_COUNTED_FOR,
            MOST_MAILS_AN_HOUR,
            MOST_MAILS_A_DAY,
            KEPT_FOR_RESETS_AN_HOUR,
            KEPT_FOR_RESETS_A_DAY,
        )

    async def take_back(self, mailbox_hash: bytes, job_id: UUID) -> None:
        """Stop counting the job's mail, which was not sent."""
        await self._connection.execute(TAKE_BACK, mailbox_hash, job_id)
