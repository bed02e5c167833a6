-- E-mail confirmation: what was found out about an account's e-mail, and the tokens in its mails.
-- depends: 0009_job_tries

-- Without a confirmed e-mail the account cannot be signed in to.
ALTER TABLE users ADD COLUMN IF NOT EXISTS confirmation_required boolean NOT NULL DEFAULT false;
ALTER TABLE users ADD COLUMN IF NOT EXISTS email_verdict text
    CONSTRAINT users_email_verdict_known CHECK (email_verdict IN
        ('valid', 'invalid', 'accept_all', 'webmail', 'disposable', 'unknown'));
ALTER TABLE users ADD COLUMN IF NOT EXISTS email_verdict_source text;
ALTER TABLE users ADD COLUMN IF NOT EXISTS email_checked_at timestamptz;

CREATE TABLE IF NOT EXISTS mail_tokens (
    -- SHA-256 of 256 random bits, which are in the mail alone.
    token_hash bytea       PRIMARY KEY,
    purpose    text        NOT NULL,
    user_id    uuid        NOT NULL REFERENCES users (user_id),
    -- The address that the mail went to: the token proves that one, and no other.
    email      text        NOT NULL,
    email_key  text        NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,

    CONSTRAINT mail_tokens_purpose_known
        CHECK (purpose IN ('confirm_email', 'change_email', 'reset_password'))
);

-- How many are live, and deleting an account's.
CREATE INDEX IF NOT EXISTS mail_tokens_of_a_user ON mail_tokens (user_id, purpose);

-- For the housekeeping that deletes what has expired.
CREATE INDEX IF NOT EXISTS mail_tokens_by_expiry ON mail_tokens (expires_at);
