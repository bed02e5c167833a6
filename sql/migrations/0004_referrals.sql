-- Referrals: who registered with whose code; written in the transaction that makes the user.
-- depends: 0003_referral_codes

CREATE TABLE IF NOT EXISTS referrals (
    -- The referral is a user, and is referred once.
    user_id       uuid        PRIMARY KEY REFERENCES users (user_id),
    referrer_id   uuid        NOT NULL REFERENCES users (user_id),
    code          text        NOT NULL,
    registered_at timestamptz NOT NULL,
    -- Keyed hash of the e-mail: outlives the account without naming anyone.
    email_hash    bytea       NOT NULL,

    -- An e-mail is referred once for ever: whoever erases the account and comes back is no
    -- new referral.
    CONSTRAINT referrals_email_referred_once UNIQUE (email_hash),
    CONSTRAINT referrals_of_another_user CHECK (user_id <> referrer_id)
);

-- The pages of GET /referrals/{referrer_id}: newest first.
CREATE INDEX IF NOT EXISTS referrals_of_a_referrer_newest_first
    ON referrals (referrer_id, registered_at DESC, user_id DESC);
