DROP INDEX IF EXISTS referrals_to_review_of_a_referrer;
DROP TABLE IF EXISTS balances;
DROP TABLE IF EXISTS transfers;
DROP TABLE IF EXISTS reward_counts;
DROP TABLE IF EXISTS rewards;
