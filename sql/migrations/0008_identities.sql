-- Identities: who people are to other issuers, and the sign-ins there that are under way.
-- depends: 0007_oauth

CREATE TABLE IF NOT EXISTS identities (
    issuer     text        NOT NULL,
    -- The issuer's own id of the person. Never the e-mail: issuers give those to somebody else.
    subject    text        NOT NULL,
    user_id    uuid        NOT NULL REFERENCES users (user_id),
    created_at timestamptz NOT NULL,

    -- Two callbacks of one new identity make one account.
    CONSTRAINT identities_of_one_user PRIMARY KEY (issuer, subject)
);

-- Erasing an account deletes its identities.
CREATE INDEX IF NOT EXISTS identities_of_a_user ON identities (user_id);

CREATE TABLE IF NOT EXISTS sign_ins (
    -- SHA-256 of the state, and of the cookie of the browser that it was sent through.
    state_hash    bytea       PRIMARY KEY,
    browser_hash  bytea       NOT NULL,
    provider      text        NOT NULL,
    nonce         text        NOT NULL,
    code_verifier text        NOT NULL,
    -- Kept here, because the issuer's page lies between it and the account.
    referral_code text,
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL
);

-- For the housekeeping that deletes what has expired.
CREATE INDEX IF NOT EXISTS sign_ins_by_expiry ON sign_ins (expires_at);
