DROP INDEX IF EXISTS referrals_one_unflagged_of_a_mailbox;
CREATE UNIQUE INDEX referrals_one_unflagged_of_a_mailbox
    ON referrals (referrer_id, mailbox_hash,
                  (CASE WHEN flags = '{}'
                        THEN '00000000-0000-0000-0000-000000000000'::uuid
                        ELSE user_id END))
 WHERE mailbox_hash IS NOT NULL;
