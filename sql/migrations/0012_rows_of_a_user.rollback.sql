DROP INDEX IF EXISTS authorization_codes_of_a_user;
DROP INDEX IF EXISTS sessions_of_a_user;
