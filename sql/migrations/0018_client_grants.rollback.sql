DROP INDEX IF EXISTS users_admins;
ALTER TABLE users DROP COLUMN IF EXISTS promoted_at;
DROP INDEX IF EXISTS authorization_codes_of_a_client;
DROP INDEX IF EXISTS sessions_open_of_a_client;
ALTER TABLE oauth_clients DROP COLUMN IF EXISTS previous_secret_expires_at;
ALTER TABLE oauth_clients DROP COLUMN IF EXISTS previous_secret_hash;
ALTER TABLE oauth_clients DROP COLUMN IF EXISTS resource_server;
ALTER TABLE oauth_clients DROP COLUMN IF EXISTS own_scopes;
ALTER TABLE oauth_clients DROP COLUMN IF EXISTS grants;
