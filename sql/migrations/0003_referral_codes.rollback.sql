DROP TABLE IF EXISTS referral_code_uses;
DROP TABLE IF EXISTS referral_codes;
