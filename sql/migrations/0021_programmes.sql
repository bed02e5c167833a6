-- Programmes: rules in versions, participants with or without an account, events and decisions.
-- depends: 0020_sign_in_page

CREATE TABLE IF NOT EXISTS programmes (
    programme_id uuid        PRIMARY KEY,
    key          text        NOT NULL,
    name         text        NOT NULL,
    -- The newest of programme_versions.
    version      integer     NOT NULL,
    landing_url  text,
    paused       boolean     NOT NULL DEFAULT false,
    leaderboard  boolean     NOT NULL DEFAULT false,
    ended_at     timestamptz,
    created_at   timestamptz NOT NULL,

    CONSTRAINT programmes_key_unique UNIQUE (key)
);

-- Rows never change: a referral keeps the version it was made under.
CREATE TABLE IF NOT EXISTS programme_versions (
    programme_id uuid        NOT NULL REFERENCES programmes (programme_id),
    version      integer     NOT NULL,
    -- json, not jsonb: a version is shown with the same bytes for ever.
    rules        json        NOT NULL,
    made_by      text        NOT NULL,
    created_at   timestamptz NOT NULL,

    -- Of two admins who replace the same version one succeeds.
    CONSTRAINT programme_versions_follow_each_other PRIMARY KEY (programme_id, version)
);

INSERT INTO programmes (programme_id, key, name, version, created_at)
VALUES ('00000000-0000-7000-8000-000000000001', 'default', 'Default', 1, now())
    ON CONFLICT DO NOTHING;
INSERT INTO programme_versions (programme_id, version, rules, made_by, created_at)
VALUES ('00000000-0000-7000-8000-000000000001', 1,
        '{"qualify":{"on":"signup"},"rewards":[]}', 'system', now())
    ON CONFLICT DO NOTHING;

-- An account becomes one in the programme `default` when it first takes part in anything.
CREATE TABLE IF NOT EXISTS participants (
    participant_id uuid        PRIMARY KEY,
    programme_id   uuid        NOT NULL REFERENCES programmes (programme_id),
    user_id        uuid        REFERENCES users (user_id),
    -- The company's own id, until it is erased …
    external_id    text,
    -- … and its keyed hash, which stays: an erased id that comes back is nobody new.
    external_hash  bytea,
    trusted        boolean     NOT NULL DEFAULT false,
    blocked_at     timestamptz,
    erased_at      timestamptz,
    created_at     timestamptz NOT NULL,

    CONSTRAINT participants_external_once UNIQUE (programme_id, external_hash),
    CONSTRAINT participants_are_somebody CHECK (user_id IS NOT NULL OR external_hash IS NOT NULL),
    CONSTRAINT participants_of_accounts_share_their_id CHECK (user_id = participant_id),
    CONSTRAINT participants_erased_have_no_external_id
        CHECK (erased_at IS NULL OR external_id IS NULL)
);

-- Few among millions: whether a code's owner is blocked is asked of every look-up.
CREATE INDEX IF NOT EXISTS participants_blocked ON participants (participant_id)
 WHERE blocked_at IS NOT NULL;

-- How many of a referrer's referrals have qualified: what `nth` is counted by.
CREATE TABLE IF NOT EXISTS standings (
    participant_id uuid    PRIMARY KEY REFERENCES participants (participant_id),
    programme_id   uuid    NOT NULL,
    qualified      integer NOT NULL DEFAULT 0,
    public_name    text,

    CONSTRAINT standings_not_negative CHECK (qualified >= 0)
);

-- Other referrers' standings are counted when they first change: of so many that would take long.
INSERT INTO participants (participant_id, programme_id, user_id, erased_at, created_at)
SELECT user_id, '00000000-0000-7000-8000-000000000001', user_id, erased_at, now()
  FROM users
 WHERE user_id IN (
        SELECT referrer_id FROM referrals GROUP BY referrer_id HAVING count(*) > 10000)
    ON CONFLICT DO NOTHING;
INSERT INTO standings (participant_id, programme_id, qualified)
SELECT referrer_id, '00000000-0000-7000-8000-000000000001', count(*)
  FROM referrals
 GROUP BY referrer_id
HAVING count(*) > 10000
    ON CONFLICT DO NOTHING;

-- The owner of a code may be a participant without an account.
ALTER TABLE referral_codes
    ADD COLUMN IF NOT EXISTS programme_id uuid NOT NULL
        DEFAULT '00000000-0000-7000-8000-000000000001',
    DROP CONSTRAINT IF EXISTS referral_codes_owner_id_fkey;

-- Codes that have died since somebody followed their link.
CREATE INDEX IF NOT EXISTS referral_codes_by_name ON referral_codes (code, created_at DESC);

-- What the release before writes has qualified: its referrals count from sign-up.
ALTER TABLE referrals
    DROP CONSTRAINT IF EXISTS referrals_user_id_fkey,
    DROP CONSTRAINT IF EXISTS referrals_referrer_id_fkey,
    ALTER COLUMN email_hash DROP NOT NULL,
    ADD COLUMN IF NOT EXISTS programme_id uuid NOT NULL
        DEFAULT '00000000-0000-7000-8000-000000000001',
    ADD COLUMN IF NOT EXISTS version integer NOT NULL DEFAULT 1,
    ADD COLUMN IF NOT EXISTS state text NOT NULL DEFAULT 'qualified',
    ADD COLUMN IF NOT EXISTS reason text NOT NULL DEFAULT 'signed-up',
    ADD COLUMN IF NOT EXISTS review text NOT NULL DEFAULT 'none',
    ADD COLUMN IF NOT EXISTS sequence integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS nth integer,
    ADD COLUMN IF NOT EXISTS window_ends_at timestamptz,
    -- Null: it is as it was when it was made.
    ADD COLUMN IF NOT EXISTS state_changed_at timestamptz;
ALTER TABLE referrals
    DROP CONSTRAINT IF EXISTS referrals_state_known,
    DROP CONSTRAINT IF EXISTS referrals_review_known,
    DROP CONSTRAINT IF EXISTS referrals_rules_exist,
    ADD CONSTRAINT referrals_state_known
        CHECK (state IN ('pending', 'qualified', 'rewarded', 'rejected', 'reversed')) NOT VALID,
    ADD CONSTRAINT referrals_review_known
        CHECK (review IN ('none', 'open', 'approved', 'rejected')) NOT VALID,
    ADD CONSTRAINT referrals_rules_exist
        FOREIGN KEY (programme_id, version) REFERENCES programme_versions (programme_id, version)
        NOT VALID;

-- Nobody is the referrer of one's own referrer.
CREATE UNIQUE INDEX IF NOT EXISTS referrals_of_a_pair_once
    ON referrals (LEAST(referrer_id, user_id), GREATEST(referrer_id, user_id));

-- For the sweep that rejects what has not qualified in time.
CREATE INDEX IF NOT EXISTS referrals_pending_until ON referrals (window_ends_at)
 WHERE state = 'pending' AND review <> 'approved';

CREATE INDEX IF NOT EXISTS referrals_to_review ON referrals (programme_id, registered_at, user_id)
 WHERE review = 'open';

-- The pages of GET /referrals: newest first.
CREATE INDEX IF NOT EXISTS referrals_newest_first
    ON referrals (programme_id, registered_at DESC, user_id DESC);

CREATE INDEX IF NOT EXISTS referrals_by_state
    ON referrals (programme_id, state, registered_at DESC, user_id DESC);

-- Rows never change. The referral is named by its referee.
CREATE TABLE IF NOT EXISTS decisions (
    referral_id uuid        NOT NULL,
    sequence    integer     NOT NULL,
    state       text        NOT NULL,
    review      text        NOT NULL,
    reason      text        NOT NULL,
    -- `system`, `client:ID` or `user:ID`.
    made_by     text        NOT NULL,
    event_id    uuid,
    -- A reviewer's own words.
    detail      text,
    decided_at  timestamptz NOT NULL,

    -- Two that decide at once cannot both.
    CONSTRAINT decisions_follow_each_other PRIMARY KEY (referral_id, sequence)
);

-- Rows never change; those of participants whom nobody referred are deleted after a while.
CREATE TABLE IF NOT EXISTS events (
    event_id       uuid        PRIMARY KEY,
    programme_id   uuid        NOT NULL,
    -- The company's id of it; our own have a space in it, which no company's can have.
    external_id    text        NOT NULL,
    participant_id uuid        NOT NULL REFERENCES participants (participant_id),
    type           text        NOT NULL,
    amount         bigint,
    unit           text,
    refunds        text,
    occurred_at    timestamptz NOT NULL,
    received_at    timestamptz NOT NULL,
    fingerprint    bytea       NOT NULL,

    CONSTRAINT events_happen_once UNIQUE (programme_id, external_id),
    CONSTRAINT events_amount_has_a_unit CHECK ((amount IS NULL) = (unit IS NULL)),
    CONSTRAINT events_amount_in_range CHECK (amount BETWEEN 0 AND 1000000000000),
    CONSTRAINT events_refunds_name_an_event CHECK ((type = 'refund') = (refunds IS NOT NULL))
);

CREATE INDEX IF NOT EXISTS events_of_a_participant
    ON events (participant_id, type, occurred_at, event_id);
CREATE INDEX IF NOT EXISTS events_that_refund ON events (programme_id, refunds)
 WHERE refunds IS NOT NULL;
-- For the housekeeping that deletes those of nobody's referral.
CREATE INDEX IF NOT EXISTS events_oldest_first ON events (received_at, event_id);

-- Keyed hashes of what a company tells about a person, for fraud rules to compare.
CREATE TABLE IF NOT EXISTS signals (
    participant_id uuid        NOT NULL,
    kind           text        NOT NULL,
    hash           bytea       NOT NULL,
    seen_at        timestamptz NOT NULL,

    PRIMARY KEY (participant_id, kind, hash),
    CONSTRAINT signals_kind_known CHECK (kind IN ('email', 'ip', 'device'))
);

CREATE INDEX IF NOT EXISTS signals_seen ON signals (hash, kind);
CREATE INDEX IF NOT EXISTS signals_oldest_first ON signals (seen_at) WHERE kind <> 'email';

-- What clients may do for themselves in a programme.
ALTER TABLE oauth_clients
    DROP CONSTRAINT IF EXISTS oauth_clients_own_scopes_known,
    ADD CONSTRAINT oauth_clients_own_scopes_known
    CHECK (own_scopes <@ '{referrals:read,admin,events:write,programme:read,rewards:write,programme:manage}');
