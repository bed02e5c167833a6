DROP INDEX IF EXISTS referrals_one_unflagged_of_a_mailbox;
ALTER TABLE referrals DROP COLUMN IF EXISTS flags;
ALTER TABLE referrals DROP COLUMN IF EXISTS mailbox_hash;
DROP TABLE IF EXISTS mailboxes;
