-- Sessions: one row for each sign-in; rotating its refresh token is one UPDATE of `counter`.
-- depends: 0001_users

CREATE TABLE IF NOT EXISTS sessions (
    session_id   uuid        PRIMARY KEY,
    user_id      uuid        NOT NULL REFERENCES users (user_id),
    -- How often the refresh token was rotated: a token with a smaller number has been used before.
    counter      bigint      NOT NULL DEFAULT 0,
    user_agent   text,
    created_at   timestamptz NOT NULL,
    refreshed_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    ended_at     timestamptz,

    CONSTRAINT sessions_expire_later CHECK (expires_at > created_at)
);

CREATE INDEX IF NOT EXISTS sessions_open_of_a_user
    ON sessions (user_id, created_at DESC)
    WHERE ended_at IS NULL;

-- For the housekeeping that deletes what has expired.
CREATE INDEX IF NOT EXISTS sessions_by_expiry ON sessions (expires_at);
