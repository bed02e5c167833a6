DROP INDEX IF EXISTS referral_codes_ended_not_kept;
ALTER TABLE referral_codes DROP COLUMN IF EXISTS kept;
ALTER TABLE referral_codes DROP COLUMN IF EXISTS end_reason;
DROP INDEX IF EXISTS referral_codes_of_an_owner_newest_first;
DROP TRIGGER IF EXISTS referral_codes_claim_their_names ON referral_codes;
DROP FUNCTION IF EXISTS claim_referral_code_name();
DROP TABLE IF EXISTS referral_code_names;
