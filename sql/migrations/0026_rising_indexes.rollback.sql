DROP INDEX IF EXISTS rewards_newest_first;
CREATE INDEX IF NOT EXISTS rewards_newest_first
    ON rewards (programme_id, created_at DESC, reward_id DESC);
DROP INDEX IF EXISTS transfers_newest_first;
CREATE INDEX IF NOT EXISTS transfers_newest_first
    ON transfers (programme_id, created_at DESC, transfer_id DESC);
DROP INDEX IF EXISTS referrals_newest_first;
CREATE INDEX IF NOT EXISTS referrals_newest_first
    ON referrals (programme_id, registered_at DESC, user_id DESC);
DROP INDEX IF EXISTS referrals_by_state;
CREATE INDEX IF NOT EXISTS referrals_by_state
    ON referrals (programme_id, state, registered_at DESC, user_id DESC);
