-- Of the referrals of one referrer that share a mailbox one is no self-referral, whatever its flags.
-- depends: 0023_webhooks

-- Until now any other flag hid a referral from the rule.
UPDATE referrals r
   SET flags = ARRAY['self-referral'] || r.flags
  FROM (SELECT user_id,
               row_number() OVER (PARTITION BY referrer_id, mailbox_hash
                                  ORDER BY registered_at, user_id) AS place
          FROM referrals
         WHERE mailbox_hash IS NOT NULL
           AND NOT 'self-referral' = ANY (flags)) AS unflagged
 WHERE r.user_id = unflagged.user_id
   AND unflagged.place > 1;

-- Under the same name, so that 0016 can still be applied again.
DROP INDEX IF EXISTS referrals_one_unflagged_of_a_mailbox;
CREATE UNIQUE INDEX referrals_one_unflagged_of_a_mailbox
    ON referrals (referrer_id, mailbox_hash,
                  (CASE WHEN 'self-referral' = ANY (flags)
                        THEN user_id
                        ELSE '00000000-0000-0000-0000-000000000000'::uuid END))
 WHERE mailbox_hash IS NOT NULL;
