-- Answers about participants: one that is kept to be repeated goes with the participant it tells of.
-- depends: 0024_self_referrals

ALTER TABLE idempotency_keys
    -- Whose id at the company the answer holds.
    ADD COLUMN IF NOT EXISTS participant_id uuid;

CREATE INDEX IF NOT EXISTS idempotency_keys_of_a_participant ON idempotency_keys (participant_id)
 WHERE participant_id IS NOT NULL;
