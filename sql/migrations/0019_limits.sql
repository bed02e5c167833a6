-- Limits: the sessions of one user are ended and deleted in batches, and ended ones after a day.
-- depends: 0018_client_grants

-- Each batch begins where the one before it has ended.
CREATE INDEX IF NOT EXISTS sessions_of_a_user_in_order ON sessions (user_id, session_id);

-- For the housekeeping that deletes what has ended.
CREATE INDEX IF NOT EXISTS sessions_ended_oldest_first ON sessions (ended_at)
 WHERE ended_at IS NOT NULL;
