DROP TABLE IF EXISTS account_changes;
DROP INDEX IF EXISTS identities_id_unique;
ALTER TABLE identities DROP COLUMN IF EXISTS email_key;
ALTER TABLE identities DROP COLUMN IF EXISTS email;
ALTER TABLE identities DROP COLUMN IF EXISTS identity_id;
ALTER TABLE mail_tokens DROP COLUMN IF EXISTS session_id;
