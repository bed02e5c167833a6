DROP INDEX IF EXISTS idempotency_keys_of_a_participant;
ALTER TABLE idempotency_keys DROP COLUMN IF EXISTS participant_id;
