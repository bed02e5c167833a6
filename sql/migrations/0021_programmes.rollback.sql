UPDATE oauth_clients
   SET own_scopes = ARRAY(SELECT unnest(own_scopes)
                          INTERSECT SELECT unnest('{referrals:read,admin}'::text[]));
ALTER TABLE oauth_clients
    DROP CONSTRAINT IF EXISTS oauth_clients_own_scopes_known,
    ADD CONSTRAINT oauth_clients_own_scopes_known CHECK (own_scopes <@ '{referrals:read,admin}');
DROP TABLE IF EXISTS signals;
DROP TABLE IF EXISTS events;
DROP TABLE IF EXISTS decisions;
-- What has no account is unknown to the release before.
DELETE FROM referrals r
 WHERE NOT EXISTS (SELECT FROM users u WHERE u.user_id = r.user_id)
    OR NOT EXISTS (SELECT FROM users u WHERE u.user_id = r.referrer_id);
DROP INDEX IF EXISTS referrals_by_state;
DROP INDEX IF EXISTS referrals_newest_first;
DROP INDEX IF EXISTS referrals_to_review;
DROP INDEX IF EXISTS referrals_pending_until;
DROP INDEX IF EXISTS referrals_of_a_pair_once;
ALTER TABLE referrals
    DROP CONSTRAINT IF EXISTS referrals_rules_exist,
    DROP COLUMN IF EXISTS state_changed_at,
    DROP COLUMN IF EXISTS window_ends_at,
    DROP COLUMN IF EXISTS nth,
    DROP COLUMN IF EXISTS sequence,
    DROP COLUMN IF EXISTS review,
    DROP COLUMN IF EXISTS reason,
    DROP COLUMN IF EXISTS state,
    DROP COLUMN IF EXISTS version,
    DROP COLUMN IF EXISTS programme_id,
    ALTER COLUMN email_hash SET NOT NULL,
    DROP CONSTRAINT IF EXISTS referrals_user_id_fkey,
    DROP CONSTRAINT IF EXISTS referrals_referrer_id_fkey,
    ADD CONSTRAINT referrals_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (user_id),
    ADD CONSTRAINT referrals_referrer_id_fkey FOREIGN KEY (referrer_id) REFERENCES users (user_id);
DELETE FROM referral_code_uses uses
 USING referral_codes c
 WHERE c.referral_code_id = uses.referral_code_id
   AND NOT EXISTS (SELECT FROM users u WHERE u.user_id = c.owner_id);
DELETE FROM referral_codes c
 WHERE NOT EXISTS (SELECT FROM users u WHERE u.user_id = c.owner_id);
DROP INDEX IF EXISTS referral_codes_by_name;
ALTER TABLE referral_codes
    DROP COLUMN IF EXISTS programme_id,
    DROP CONSTRAINT IF EXISTS referral_codes_owner_id_fkey,
    ADD CONSTRAINT referral_codes_owner_id_fkey FOREIGN KEY (owner_id) REFERENCES users (user_id);
DROP TABLE IF EXISTS standings;
DROP TABLE IF EXISTS participants;
DROP TABLE IF EXISTS programme_versions;
DROP TABLE IF EXISTS programmes;
