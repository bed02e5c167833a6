ALTER TABLE sign_ins DROP COLUMN IF EXISTS authorization_request;
