-- What belongs to a user is found by an index: changing a password or erasing read whole tables.
-- depends: 0011_enrichments

CREATE INDEX IF NOT EXISTS sessions_of_a_user ON sessions (user_id);

CREATE INDEX IF NOT EXISTS authorization_codes_of_a_user ON authorization_codes (user_id);
