-- Idempotency keys: the first answer to a request, to be given again when it is repeated.
-- depends: 0001_users

CREATE TABLE IF NOT EXISTS idempotency_keys (
    -- The user's id, or the call where the caller has no account yet.
    scope           text        NOT NULL,
    idempotency_key text        NOT NULL,
    -- Keyed hash of call and body: a plain one would let a thief of this table guess passwords.
    fingerprint     bytea       NOT NULL,
    created_at      timestamptz NOT NULL,
    status          smallint,
    body            bytea,
    -- Whose data the answer holds: erased with the account.
    user_id         uuid        REFERENCES users (user_id),

    PRIMARY KEY (scope, idempotency_key)
);

-- For the housekeeping that deletes what is older than a day.
CREATE INDEX IF NOT EXISTS idempotency_keys_oldest_first ON idempotency_keys (created_at);

CREATE INDEX IF NOT EXISTS idempotency_keys_of_a_user ON idempotency_keys (user_id);
