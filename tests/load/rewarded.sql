-- A hundred thousand referrals that were rewarded, both sides at once, as the service leaves them: of
-- a company's people, each with a purchase, three decisions, two rewards and their grants.
CREATE TEMPORARY TABLE rewarded AS
SELECT number, uuidv7() AS referee_id, uuidv7() AS event_id, uuidv7() AS friend_id,
       uuidv7() AS welcome_id, timestamptz '2026-02-01 00:00Z' + number * interval '1 second' AS at,
       1 + number / 50 AS referrer
  FROM generate_series(1, 100000) AS number;
CREATE TEMPORARY TABLE referrers AS
SELECT number, uuidv7() AS referrer_id FROM generate_series(1, 2001) AS number;

INSERT INTO participants (participant_id, programme_id, external_id, external_hash, created_at)
SELECT referrer_id, (SELECT programme_id FROM programmes), 'referrer-' || number,
       sha256(('r' || number)::bytea), timestamptz '2026-02-01 00:00Z'
  FROM referrers
UNION ALL
SELECT referee_id, (SELECT programme_id FROM programmes), 'user-' || number,
       sha256(number::text::bytea), at
  FROM rewarded;

INSERT INTO referrals (user_id, referrer_id, code, registered_at, version, state, reason, sequence,
                       nth, state_changed_at)
SELECT referee_id, referrer_id, upper(substr(md5(referrer::text), 1, 10)), at, 1, 'rewarded',
       'hold-over', 3, 1 + r.number % 50, at
  FROM rewarded r
  JOIN referrers f ON f.number = referrer;

INSERT INTO decisions (referral_id, sequence, state, review, reason, made_by, event_id, decided_at)
SELECT referee_id, sequence, state, 'none', reason, 'client:' || substr(md5('shop'), 1, 22),
       CASE WHEN sequence > 1 THEN event_id END, at
  FROM rewarded
 CROSS JOIN (VALUES (1, 'pending', 'signed-up'), (2, 'qualified', 'qualified'),
                    (3, 'rewarded', 'hold-over')) AS decided (sequence, state, reason);

INSERT INTO events (event_id, programme_id, external_id, participant_id, type, amount, unit,
                    occurred_at, received_at, fingerprint)
SELECT event_id, (SELECT programme_id FROM programmes), 'order-' || number, referee_id, 'purchase',
       4900, 'EUR', at, at, sha256(number::text::bytea)
  FROM rewarded;

INSERT INTO rewards (reward_id, programme_id, version, rule, participant_id, referral_id, cause_id,
                     unit, amount, state, available_at, created_at)
SELECT reward_id, (SELECT programme_id FROM programmes), 1, rule, participant_id, referee_id,
       referee_id, unit, amount, 'available', at, at
  FROM rewarded r
  JOIN referrers f ON f.number = referrer
 CROSS JOIN LATERAL (VALUES (friend_id, 'friend', referrer_id, 'EUR', 500),
                            (welcome_id, 'welcome', referee_id, 'points', 100))
         AS given (reward_id, rule, participant_id, unit, amount);

INSERT INTO transfers (transfer_id, programme_id, participant_id, unit, kind, from_account,
                       to_account, amount, reward_id, made_by, created_at)
SELECT uuidv7(), programme_id, participant_id, unit, 'grant', 'programme', 'available', amount,
       reward_id, 'client:' || substr(md5('shop'), 1, 22), created_at
  FROM rewards
 ORDER BY reward_id;

INSERT INTO balances (participant_id, unit, programme_id, available)
SELECT participant_id, unit, programme_id, sum(amount)
  FROM rewards
 GROUP BY participant_id, unit, programme_id;

INSERT INTO standings (participant_id, programme_id, qualified)
SELECT referrer_id, (SELECT programme_id FROM programmes), 50
  FROM referrers;

VACUUM ANALYZE;
