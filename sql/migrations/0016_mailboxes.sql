-- Mailboxes: how many mails went to each of late, and which referrals share one.
-- depends: 0015_claims

CREATE TABLE IF NOT EXISTS mailboxes (
    -- Keyed hash of the folded email address: the table names nobody, and outlives an erasure.
    mailbox_hash bytea         PRIMARY KEY,
    -- Of each mail of the last day (no more than are needed to see that there were too many) the
    -- job, by which it is the same mail when it is tried again, when it was sent, and whether it
    -- holds a token for a new password.
    job_ids      uuid[]        NOT NULL,
    sent_at      timestamptz[] NOT NULL,
    are_resets   boolean[]     NOT NULL,
    counted_at   timestamptz   NOT NULL
);

-- For the housekeeping that deletes what is older than a day.
CREATE INDEX IF NOT EXISTS mailboxes_oldest_first ON mailboxes (counted_at);

-- The same keyed hash, of the referral's mailbox when it registered; NULL before this migration.
ALTER TABLE referrals ADD COLUMN IF NOT EXISTS mailbox_hash bytea;
ALTER TABLE referrals ADD COLUMN IF NOT EXISTS flags text[] NOT NULL DEFAULT '{}';

-- Of the referrals of one referrer that share a mailbox one is without a flag, also if they
-- register at the same instant.
CREATE UNIQUE INDEX IF NOT EXISTS referrals_one_unflagged_of_a_mailbox
    ON referrals (referrer_id, mailbox_hash,
                  (CASE WHEN flags = '{}'
                        THEN '00000000-0000-0000-0000-000000000000'::uuid
                        ELSE user_id END))
 WHERE mailbox_hash IS NOT NULL;
