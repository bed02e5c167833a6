-- Client grants: how a client may ask for tokens, and the scopes that are its own, not its users'.
-- depends: 0017_identities_and_undo

-- The defaults are what the release before may go on writing: a client that speaks for users only.
ALTER TABLE oauth_clients ADD COLUMN IF NOT EXISTS grants text[] NOT NULL
    DEFAULT '{authorization_code,refresh_token}'
    CONSTRAINT oauth_clients_grants_known
    CHECK (grants <@ '{authorization_code,refresh_token,client_credentials}');
ALTER TABLE oauth_clients ADD COLUMN IF NOT EXISTS own_scopes text[] NOT NULL DEFAULT '{}'
    CONSTRAINT oauth_clients_own_scopes_known CHECK (own_scopes <@ '{referrals:read,admin}');
ALTER TABLE oauth_clients ADD COLUMN IF NOT EXISTS resource_server boolean NOT NULL DEFAULT false
    -- A secret is what tells such a client from anyone who has read its id.
    CONSTRAINT oauth_clients_without_a_secret_speak_for_users
    CHECK (secret_hash IS NOT NULL
           OR (NOT 'client_credentials' = ANY (grants) AND own_scopes = '{}' AND NOT resource_server));

-- While a secret is being replaced, the one before it works too.
ALTER TABLE oauth_clients ADD COLUMN IF NOT EXISTS previous_secret_hash bytea;
ALTER TABLE oauth_clients ADD COLUMN IF NOT EXISTS previous_secret_expires_at timestamptz
    CONSTRAINT oauth_clients_previous_secret_expires
    CHECK ((previous_secret_hash IS NULL) = (previous_secret_expires_at IS NULL));

-- A confidential client without a redirect URI can only ever have spoken for itself. `scopes`
-- stays for the release before; without the grant authorization_code it means nothing.
UPDATE oauth_clients
   SET grants = '{client_credentials}',
       own_scopes = ARRAY(SELECT unnest(scopes) INTERSECT SELECT unnest('{referrals:read,admin}'::text[]))
 WHERE secret_hash IS NOT NULL
   AND redirect_uris = '{}'
   AND 'authorization_code' = ANY (grants);

-- Ending what a client was given. No session of the service's own sign-in is in this index.
CREATE INDEX IF NOT EXISTS sessions_open_of_a_client
    ON sessions (client_id, session_id)
    WHERE ended_at IS NULL AND client_id <> 'first-party';
CREATE INDEX IF NOT EXISTS authorization_codes_of_a_client ON authorization_codes (client_id);

-- Clients that were deleted before this left their sessions behind. The jobs make it known.
WITH ended AS (
    UPDATE sessions
       SET ended_at = now()
     WHERE ended_at IS NULL
       AND client_id <> 'first-party'
       AND client_id IN (SELECT client_id FROM oauth_clients WHERE deleted_at IS NOT NULL)
    RETURNING 'session:' || session_id AS key
)
INSERT INTO jobs (job_id, kind, payload, created_at)
SELECT gen_random_uuid(), 'forget', jsonb_agg(key), now()
  FROM (SELECT key, row_number() OVER () / 1000 AS batch FROM ended) AS numbered
 GROUP BY batch;

-- NULL for those who were made admins before this. Last, because it locks all readers out until
-- the transaction ends; before the index, because the two locks in the other order can deadlock.
ALTER TABLE users ADD COLUMN IF NOT EXISTS promoted_at timestamptz;

-- Few among millions: listed, and locked in this order before one of them is taken away.
CREATE INDEX IF NOT EXISTS users_admins ON users (user_id) WHERE role = 'admin';
