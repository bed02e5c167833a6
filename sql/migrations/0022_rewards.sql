-- Rewards and the ledger: what rules gave, and transfers of it between accounts, which sum to zero.
-- depends: 0021_programmes

CREATE TABLE IF NOT EXISTS rewards (
    reward_id      uuid        PRIMARY KEY,
    programme_id   uuid        NOT NULL,
    version        integer     NOT NULL,
    -- The name of the rule of that version.
    rule           text        NOT NULL,
    participant_id uuid        NOT NULL REFERENCES participants (participant_id),
    -- Null for a milestone, which is reached by many.
    referral_id    uuid,
    -- What it was given for: the referral, an event, or for a milestone the participant.
    cause_id       uuid        NOT NULL,
    -- Which of the participant's milestones it is; otherwise 0.
    nth            integer     NOT NULL DEFAULT 0,
    unit           text        NOT NULL,
    amount         bigint      NOT NULL,
    -- How much of it has been taken back.
    reversed       bigint      NOT NULL DEFAULT 0,
    state          text        NOT NULL,
    -- Whether a review or a block keeps it from becoming available.
    held           boolean     NOT NULL DEFAULT false,
    available_at   timestamptz NOT NULL,
    created_at     timestamptz NOT NULL,

    CONSTRAINT rewards_state_known CHECK (state IN ('pending', 'available', 'reversed')),
    CONSTRAINT rewards_amount_in_range CHECK (amount BETWEEN 1 AND 1000000000000),
    CONSTRAINT rewards_reversed_at_most_whole CHECK (reversed BETWEEN 0 AND amount),
    CONSTRAINT rewards_reversed_is_a_state CHECK ((state = 'reversed') = (reversed = amount)),
    CONSTRAINT rewards_held_while_pending CHECK (state = 'pending' OR NOT held)
);

-- One live reward of each rule and cause; one that was taken back can be given again.
CREATE UNIQUE INDEX IF NOT EXISTS rewards_given_once
    ON rewards (rule, participant_id, cause_id, nth) WHERE state <> 'reversed';

-- For the sweep. Held ones are not in it: they would stand in front of it for ever.
CREATE INDEX IF NOT EXISTS rewards_due ON rewards (programme_id, available_at)
 WHERE state = 'pending' AND NOT held;

CREATE INDEX IF NOT EXISTS rewards_newest_first
    ON rewards (programme_id, created_at DESC, reward_id DESC);
CREATE INDEX IF NOT EXISTS rewards_live_of_a_referral ON rewards (referral_id, rule, cause_id)
 WHERE referral_id IS NOT NULL AND state <> 'reversed';
-- For holding and freeing a participant's.
CREATE INDEX IF NOT EXISTS rewards_pending_of_a_participant ON rewards (participant_id)
 WHERE state = 'pending';
-- What a referrer's standing has reached.
CREATE INDEX IF NOT EXISTS rewards_for_milestones ON rewards (participant_id, nth)
 WHERE referral_id IS NULL AND state <> 'reversed';
CREATE INDEX IF NOT EXISTS rewards_of_a_participant
    ON rewards (participant_id, created_at DESC, reward_id DESC);
CREATE INDEX IF NOT EXISTS rewards_of_a_referral
    ON rewards (referral_id, created_at DESC, reward_id DESC) WHERE referral_id IS NOT NULL;

-- How many live rewards of a rule with a cap there are: of a referrer, or of a programme.
CREATE TABLE IF NOT EXISTS reward_counts (
    subject_id uuid    NOT NULL,
    rule       text    NOT NULL,
    given      integer NOT NULL,

    PRIMARY KEY (subject_id, rule),
    CONSTRAINT reward_counts_not_negative CHECK (given >= 0)
);

-- Rows never change: what was wrong is moved back by another one.
CREATE TABLE IF NOT EXISTS transfers (
    transfer_id    uuid        PRIMARY KEY,
    programme_id   uuid        NOT NULL,
    participant_id uuid        NOT NULL REFERENCES participants (participant_id),
    unit           text        NOT NULL,
    kind           text        NOT NULL,
    from_account   text        NOT NULL,
    to_account     text        NOT NULL,
    amount         bigint      NOT NULL,
    reward_id      uuid        REFERENCES rewards (reward_id),
    -- The company's id of a redemption or an adjustment.
    external_id    text,
    cancels        uuid        REFERENCES transfers (transfer_id),
    fingerprint    bytea,
    note           text,
    -- `system`, `client:ID` or `user:ID`.
    made_by        text        NOT NULL,
    created_at     timestamptz NOT NULL,

    CONSTRAINT transfers_kind_known CHECK ((kind, from_account, to_account) IN (
        ('grant', 'programme', 'pending'), ('grant', 'programme', 'available'),
        ('release', 'pending', 'available'),
        ('reversal', 'pending', 'programme'), ('reversal', 'available', 'programme'),
        ('redemption', 'available', 'redeemed'), ('cancellation', 'redeemed', 'available'),
        ('adjustment', 'programme', 'available'), ('adjustment', 'available', 'programme'))),
    CONSTRAINT transfers_amount_in_range CHECK (amount BETWEEN 1 AND 1000000000000),
    CONSTRAINT transfers_of_rewards
        CHECK ((kind IN ('grant', 'release', 'reversal')) = (reward_id IS NOT NULL)),
    CONSTRAINT transfers_asked_for_have_an_id
        CHECK ((kind IN ('redemption', 'adjustment')) = (external_id IS NOT NULL)
               AND (external_id IS NULL) = (fingerprint IS NULL)),
    CONSTRAINT transfers_cancel_another CHECK ((kind = 'cancellation') = (cancels IS NOT NULL))
);

CREATE UNIQUE INDEX IF NOT EXISTS transfers_grant_once ON transfers (reward_id)
 WHERE kind = 'grant';
CREATE UNIQUE INDEX IF NOT EXISTS transfers_release_once ON transfers (reward_id)
 WHERE kind = 'release';
CREATE UNIQUE INDEX IF NOT EXISTS transfers_external_once ON transfers (programme_id, external_id)
 WHERE external_id IS NOT NULL;
CREATE UNIQUE INDEX IF NOT EXISTS transfers_cancelled_once ON transfers (cancels)
 WHERE cancels IS NOT NULL;
CREATE INDEX IF NOT EXISTS transfers_newest_first
    ON transfers (programme_id, created_at DESC, transfer_id DESC);
CREATE INDEX IF NOT EXISTS transfers_of_a_participant
    ON transfers (participant_id, created_at DESC, transfer_id DESC);
-- For the check of the ledger: what was taken back of a reward.
CREATE INDEX IF NOT EXISTS transfers_that_reverse ON transfers (reward_id)
 WHERE kind = 'reversal';

-- The sum of a participant's transfers in a unit, written with each of them. `available` is below
-- zero where something was paid out and then refunded.
CREATE TABLE IF NOT EXISTS balances (
    participant_id uuid   NOT NULL REFERENCES participants (participant_id),
    unit           text   NOT NULL,
    programme_id   uuid   NOT NULL,
    pending        bigint NOT NULL DEFAULT 0,
    available      bigint NOT NULL DEFAULT 0,
    redeemed       bigint NOT NULL DEFAULT 0,

    PRIMARY KEY (participant_id, unit),
    CONSTRAINT balances_pending_not_negative CHECK (pending >= 0),
    CONSTRAINT balances_redeemed_not_negative CHECK (redeemed >= 0)
);

CREATE INDEX IF NOT EXISTS balances_of_a_programme
    ON balances (programme_id, participant_id DESC, unit DESC);

-- Whether a referrer's milestone has to wait for a review.
CREATE INDEX IF NOT EXISTS referrals_to_review_of_a_referrer ON referrals (referrer_id)
 WHERE review = 'open';
