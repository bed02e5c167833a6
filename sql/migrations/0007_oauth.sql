-- OAuth 2.0: clients, authorization codes, and which client a session belongs to.
-- depends: 0002_sessions

CREATE TABLE IF NOT EXISTS oauth_clients (
    client_id     text        PRIMARY KEY,
    name          text        NOT NULL,
    -- SHA-256: enough for a secret of 256 random bits. NULL: a public client, which can keep none.
    secret_hash   bytea,
    redirect_uris text[]      NOT NULL,
    scopes        text[]      NOT NULL,
    created_at    timestamptz NOT NULL,
    deleted_at    timestamptz
);

-- client_id has no foreign key: some clients are built in. A machine's session has no user.
ALTER TABLE sessions ADD COLUMN IF NOT EXISTS client_id text NOT NULL DEFAULT 'first-party';
ALTER TABLE sessions ADD COLUMN IF NOT EXISTS origin text NOT NULL DEFAULT 'password';
ALTER TABLE sessions ADD COLUMN IF NOT EXISTS scopes text[];
ALTER TABLE sessions ALTER COLUMN user_id DROP NOT NULL;

CREATE TABLE IF NOT EXISTS authorization_codes (
    -- SHA-256 of the code: whoever reads the table cannot redeem one.
    code_hash      bytea       PRIMARY KEY,
    client_id      text        NOT NULL,
    user_id        uuid        NOT NULL REFERENCES users (user_id),
    redirect_uri   text        NOT NULL,
    scopes         text[]      NOT NULL,
    code_challenge text        NOT NULL,
    created_at     timestamptz NOT NULL,
    expires_at     timestamptz NOT NULL,
    -- What the code gave when it was redeemed: ended if it is sent again.
    session_id     uuid        REFERENCES sessions (session_id) ON DELETE SET NULL,
    redeemed_at    timestamptz
);

-- For the housekeeping that deletes what has expired.
CREATE INDEX IF NOT EXISTS authorization_codes_by_expiry ON authorization_codes (expires_at);

-- Deleting an expired session looks for its code.
CREATE INDEX IF NOT EXISTS authorization_codes_of_a_session ON authorization_codes (session_id);
