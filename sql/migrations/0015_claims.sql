-- Claims: registrations that nobody has confirmed yet, and which tokens have confirmed an address.
-- depends: 0014_referral_code_names

-- Each has a password, or an identity, and a code of its own: confirming its token makes exactly
-- this one the account, whoever else has registered with the email address.
CREATE TABLE IF NOT EXISTS claims (
    claim_id         uuid        PRIMARY KEY,
    email            text        NOT NULL,
    email_key        text        NOT NULL,
    password_hash    text,
    issuer           text,
    subject          text,
    -- Live when the claim was made; whether it still counts is decided at the confirmation.
    referral_code_id uuid,
    created_at       timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL,

    CONSTRAINT claims_have_one_way_in
        CHECK ((password_hash IS NULL) <> (issuer IS NULL)
           AND (issuer IS NULL) = (subject IS NULL)),
    CONSTRAINT claims_referral_code_exists
        FOREIGN KEY (referral_code_id) REFERENCES referral_codes (referral_code_id)
);

-- A confirmation locks and deletes all claims of the address; a resend takes the newest.
CREATE INDEX IF NOT EXISTS claims_of_an_email ON claims (email_key, claim_id);

-- For the housekeeping that deletes what has expired.
CREATE INDEX IF NOT EXISTS claims_by_expiry ON claims (expires_at);

-- Deleting a code looks for its claims.
CREATE INDEX IF NOT EXISTS claims_of_a_referral_code ON claims (referral_code_id)
 WHERE referral_code_id IS NOT NULL;

-- A token is a user's or a claim's, and goes with it.
ALTER TABLE mail_tokens ALTER COLUMN user_id DROP NOT NULL;
ALTER TABLE mail_tokens ADD COLUMN IF NOT EXISTS claim_id uuid
    REFERENCES claims (claim_id) ON DELETE CASCADE
    CONSTRAINT mail_tokens_of_a_user_or_a_claim CHECK ((user_id IS NULL) <> (claim_id IS NULL));

CREATE INDEX IF NOT EXISTS mail_tokens_of_a_claim ON mail_tokens (claim_id)
 WHERE claim_id IS NOT NULL;

-- Tokens that were used: the same link again is no error while what it confirmed still holds.
CREATE TABLE IF NOT EXISTS confirmations (
    token_hash   bytea       PRIMARY KEY,
    user_id      uuid        NOT NULL REFERENCES users (user_id),
    -- users.email_confirmed_at as it was then: another one belongs to another address.
    confirmed_at timestamptz NOT NULL
);

-- Deleting an account's.
CREATE INDEX IF NOT EXISTS confirmations_of_a_user ON confirmations (user_id);
