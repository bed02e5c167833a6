-- Job tries: when a job is due, how often it was tried, and which ones were given up.
-- depends: 0008_identities

-- Null for a job that nobody claims, because doing it twice costs nothing.
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS due_at timestamptz;
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS tries integer NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS last_error text;
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS parked_at timestamptz;

-- Workers take the job of a kind that has been due for longest.
CREATE INDEX IF NOT EXISTS jobs_due ON jobs (kind, due_at)
 WHERE due_at IS NOT NULL AND parked_at IS NULL;

-- For the operators' list, and for the housekeeping that deletes the oldest.
CREATE INDEX IF NOT EXISTS jobs_parked ON jobs (parked_at) WHERE parked_at IS NOT NULL;
