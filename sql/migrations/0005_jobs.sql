-- Jobs: work that follows a write and must not be lost, written in the same transaction.
-- depends: 0001_users

CREATE TABLE IF NOT EXISTS jobs (
    job_id     uuid        PRIMARY KEY,
    kind       text        NOT NULL,
    payload    jsonb       NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE INDEX IF NOT EXISTS jobs_of_a_kind_oldest_first ON jobs (kind, job_id);
