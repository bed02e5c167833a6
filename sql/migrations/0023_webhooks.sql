-- Webhooks: where companies listen, what they are sent, and how each attempt ended.
-- depends: 0021_programmes

CREATE TABLE IF NOT EXISTS webhook_endpoints (
    endpoint_id     uuid        PRIMARY KEY,
    -- The places there are: a twenty-first endpoint finds none.
    slot            smallint    NOT NULL,
    url             text        NOT NULL,
    -- Empty: all types.
    types           text[]      NOT NULL DEFAULT '{}',
    -- Which secret signs; secrets are computed from it, and stored nowhere.
    secret_number   integer     NOT NULL DEFAULT 1,
    -- Until when the secret before signs along.
    previous_until  timestamptz,
    -- When the first attempt failed since one succeeded, and when the next may be made.
    failing_since   timestamptz,
    resume_at       timestamptz,
    disabled_at     timestamptz,
    disabled_reason text,
    -- The row stays until what was sent there is gone, too.
    deleted_at      timestamptz,
    created_at      timestamptz NOT NULL,

    CONSTRAINT webhook_endpoints_slot_in_range CHECK (slot BETWEEN 1 AND 20),
    CONSTRAINT webhook_endpoints_disabled_for_a_reason
        CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL)),
    CONSTRAINT webhook_endpoints_deleted_are_disabled
        CHECK (deleted_at IS NULL OR disabled_at IS NOT NULL),
    CONSTRAINT webhook_endpoints_fail_until_they_resume
        CHECK ((failing_since IS NULL) = (resume_at IS NULL))
);

-- Of two that take the last place at once one gets it.
CREATE UNIQUE INDEX IF NOT EXISTS webhook_endpoints_slot_once ON webhook_endpoints (slot)
 WHERE deleted_at IS NULL;

CREATE INDEX IF NOT EXISTS webhook_endpoints_live ON webhook_endpoints (endpoint_id)
 WHERE disabled_at IS NULL;
CREATE INDEX IF NOT EXISTS webhook_endpoints_disabled ON webhook_endpoints (disabled_at)
 WHERE disabled_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS webhook_endpoints_deleted ON webhook_endpoints (deleted_at)
 WHERE deleted_at IS NOT NULL;

-- Rows never change. The bytes are sent at each attempt as they are here.
CREATE TABLE IF NOT EXISTS webhook_messages (
    message_id uuid        PRIMARY KEY,
    type       text        NOT NULL,
    body       bytea       NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE INDEX IF NOT EXISTS webhook_messages_oldest_first ON webhook_messages (created_at);

-- A message on its way to one endpoint. While it is pending there is a job of the kind `delivery`.
CREATE TABLE IF NOT EXISTS webhook_deliveries (
    message_id  uuid        NOT NULL REFERENCES webhook_messages (message_id) ON DELETE CASCADE,
    -- No foreign key: every message would lock the rows of its endpoints.
    endpoint_id uuid        NOT NULL,
    state       text        NOT NULL DEFAULT 'pending',
    -- Why it failed for good.
    reason      text,
    attempts    integer     NOT NULL DEFAULT 0,
    -- The message's.
    created_at  timestamptz NOT NULL,

    PRIMARY KEY (message_id, endpoint_id),
    CONSTRAINT webhook_deliveries_state_known
        CHECK (state IN ('pending', 'delivered', 'failed')),
    CONSTRAINT webhook_deliveries_fail_for_a_reason CHECK ((state = 'failed') = (reason IS NOT NULL))
);

CREATE INDEX IF NOT EXISTS webhook_deliveries_newest_first
    ON webhook_deliveries (endpoint_id, created_at DESC, message_id DESC);
-- Few among many.
CREATE INDEX IF NOT EXISTS webhook_deliveries_undelivered
    ON webhook_deliveries (endpoint_id, state, created_at DESC, message_id DESC)
 WHERE state <> 'delivered';

-- Rows never change. Without a status no answer came, and `error` says why.
CREATE TABLE IF NOT EXISTS webhook_attempts (
    message_id   uuid        NOT NULL,
    endpoint_id  uuid        NOT NULL,
    attempt      integer     NOT NULL,
    status       smallint,
    error        text,
    milliseconds integer     NOT NULL,
    attempted_at timestamptz NOT NULL,

    PRIMARY KEY (message_id, endpoint_id, attempt),
    CONSTRAINT webhook_attempts_of_a_delivery FOREIGN KEY (message_id, endpoint_id)
        REFERENCES webhook_deliveries (message_id, endpoint_id) ON DELETE CASCADE,
    CONSTRAINT webhook_attempts_end_in_one_way CHECK ((status IS NULL) = (error IS NOT NULL))
);

-- Workers look at each endpoint by itself, so what waits for one that fails is in nobody's way.
CREATE INDEX IF NOT EXISTS jobs_of_an_endpoint ON jobs ((payload ->> 'endpoint_id'), due_at)
 WHERE kind = 'delivery';
