-- What is listed newest first, indexed in rising order: new rows come last, and fill their pages.
-- depends: 0025_answers_about_participants

-- An index that falls is split in the middle each time, and half of it stays empty. Read from its
-- end, one that rises does the same.
DROP INDEX IF EXISTS rewards_newest_first;
CREATE INDEX IF NOT EXISTS rewards_newest_first ON rewards (programme_id, created_at, reward_id);
DROP INDEX IF EXISTS transfers_newest_first;
CREATE INDEX IF NOT EXISTS transfers_newest_first
    ON transfers (programme_id, created_at, transfer_id);
DROP INDEX IF EXISTS referrals_newest_first;
CREATE INDEX IF NOT EXISTS referrals_newest_first
    ON referrals (programme_id, registered_at, user_id);
DROP INDEX IF EXISTS referrals_by_state;
CREATE INDEX IF NOT EXISTS referrals_by_state
    ON referrals (programme_id, state, registered_at, user_id);
