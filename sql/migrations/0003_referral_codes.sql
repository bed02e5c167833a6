-- Referral codes: a user holds one live code at a time; ended codes stay for the record.
-- depends: 0001_users

CREATE TABLE IF NOT EXISTS referral_codes (
    referral_code_id uuid        PRIMARY KEY,
    owner_id         uuid        NOT NULL REFERENCES users (user_id),
    code             text        NOT NULL,
    created_at       timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL,
    max_uses         integer,
    -- Exact, and counted here, where `max_uses` is set; otherwise in referral_code_uses.
    uses             integer     NOT NULL DEFAULT 0,
    -- Deleted, replaced, used up, or expired and in the way of another code.
    ended_at         timestamptz,

    CONSTRAINT referral_codes_expire_later CHECK (expires_at > created_at),
    CONSTRAINT referral_codes_are_normalised CHECK (code ~ '^[0-9A-Z-]{4,32}$'),
    CONSTRAINT referral_codes_used_at_most_max_uses CHECK (uses <= max_uses)
);

-- The database, not the application, decides a race between two requests of one owner …
CREATE UNIQUE INDEX IF NOT EXISTS referral_codes_one_live_per_owner
    ON referral_codes (owner_id)
    WHERE ended_at IS NULL;

-- … and between two owners who want the same code.
CREATE UNIQUE INDEX IF NOT EXISTS referral_codes_live_code_unique
    ON referral_codes (code)
    WHERE ended_at IS NULL;

-- Uses of a code without `max_uses`, spread over slots, so that registrations with one popular
-- code do not queue for one row.
CREATE TABLE IF NOT EXISTS referral_code_uses (
    referral_code_id uuid     NOT NULL REFERENCES referral_codes (referral_code_id),
    slot             smallint NOT NULL,
    uses             bigint   NOT NULL,

    PRIMARY KEY (referral_code_id, slot)
);
