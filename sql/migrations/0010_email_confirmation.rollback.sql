DROP TABLE IF EXISTS mail_tokens;
ALTER TABLE users DROP COLUMN IF EXISTS email_checked_at;
ALTER TABLE users DROP COLUMN IF EXISTS email_verdict_source;
ALTER TABLE users DROP COLUMN IF EXISTS email_verdict;
ALTER TABLE users DROP COLUMN IF EXISTS confirmation_required;
