-- Security events: sign-ins, failed ones and changes, as the owner of an account sees them.
-- depends: 0012_rows_of_a_user

CREATE TABLE IF NOT EXISTS security_events (
    security_event_id uuid        PRIMARY KEY,
    -- NULL: a failed sign-in to no account. It is written too, so that it takes the same time.
    user_id           uuid        REFERENCES users (user_id),
    event             text        NOT NULL,
    occurred_at       timestamptz NOT NULL,
    -- A /24 or a /64: which network, not which person in it.
    address           text,
    user_agent        text
);

-- The pages of GET /users/me/activity: newest first.
CREATE INDEX IF NOT EXISTS security_events_of_a_user_newest_first
    ON security_events (user_id, occurred_at DESC, security_event_id DESC);

-- For the housekeeping that deletes what is older than 90 days.
CREATE INDEX IF NOT EXISTS security_events_oldest_first ON security_events (occurred_at);
