-- What the benchmark of rewards begins with, on the data set of data.sql: a programme with two
-- rewards in which 6,000 people were referred and wait for a purchase, and one endpoint listens;
-- rewards of accounts to be read; a programme with rewards that are due; open reviews among all
-- referrals of `default`, and among a thousand. `people` holds the hash of each company's id, and
-- the setting bench.due how many rewards are due.

SET LOCAL session_replication_role = replica;

CREATE OR REPLACE FUNCTION pg_temp.id(kind integer, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE
AS $$
    SELECT (lpad(to_hex(1750000000000 + n), 12, '0') || '7' || lpad(to_hex(kind), 3, '0')
            || '8000' || lpad(to_hex(n), 12, '0'))::uuid
$$;
CREATE TEMPORARY TABLE ours AS SELECT pg_temp.id(5, n) AS programme_id FROM generate_series(2, 4) n;

DELETE FROM transfers WHERE programme_id IN (TABLE ours) OR made_by = 'bench';
DELETE FROM rewards WHERE programme_id IN (TABLE ours) OR version = 900;
DELETE FROM balances WHERE programme_id IN (TABLE ours) OR unit = 'bench';
DELETE FROM reward_counts;
DELETE FROM events WHERE programme_id IN (TABLE ours);
DELETE FROM decisions USING referrals r
 WHERE r.user_id = decisions.referral_id AND r.programme_id IN (TABLE ours);
DELETE FROM referrals WHERE programme_id IN (TABLE ours);
DELETE FROM standings WHERE programme_id IN (TABLE ours);
DELETE FROM participants WHERE programme_id IN (TABLE ours);
DELETE FROM jobs WHERE kind = 'delivery';
DELETE FROM webhook_deliveries;
DELETE FROM webhook_messages;
DELETE FROM webhook_endpoints;

INSERT INTO programmes (programme_id, key, name, version, paused, created_at)
VALUES (pg_temp.id(5, 2), 'bench-rewards', 'Bench', 2, false, now()),
       (pg_temp.id(5, 3), 'bench-reviews', 'Bench', 1, false, now()),
       (pg_temp.id(5, 4), 'bench-due', 'Bench', 1, true, now())
    ON CONFLICT (key) DO UPDATE SET paused = excluded.paused;
INSERT INTO programmes (programme_id, key, name, version, created_at)
VALUES ('00000000-0000-7000-8000-000000000001', 'default', 'Default', 1, now())
    ON CONFLICT DO NOTHING;
INSERT INTO programme_versions (programme_id, version, rules, made_by, created_at)
VALUES ('00000000-0000-7000-8000-000000000001', 1, '{"qualify": {"on": "signup"}}', 'system', now())
    ON CONFLICT DO NOTHING;
INSERT INTO programme_versions (programme_id, version, rules, made_by, created_at)
SELECT programme_id, version,
       json_build_object(
           'qualify', json_build_object(
               'on', 'purchase', 'minimum', json_build_object('amount', 2000, 'unit', 'EUR')),
           'rewards', json_build_array(
               jsonb_build_object('name', 'friend', 'to', 'referrer', 'on', 'qualified',
                                  'unit', 'EUR', 'amount', 500)
               || CASE version WHEN 2 THEN '{"max_total": 1000000}' ELSE '{}' END::jsonb,
               json_build_object('name', 'welcome', 'to', 'referee', 'on', 'qualified',
                                 'unit', 'points', 'amount', 100))),
       'system', now()
  FROM (SELECT programme_id, version FROM ours CROSS JOIN generate_series(1, 2) AS version
        UNION ALL
        SELECT '00000000-0000-7000-8000-000000000001', 900) AS wanted
    ON CONFLICT DO NOTHING;
INSERT INTO oauth_clients (client_id, name, secret_hash, redirect_uris, scopes, grants, own_scopes,
                           resource_server, created_at)
VALUES ('bench-rewards', 'Bench', sha256('bench'), '{}', '{}', '{client_credentials}',
        '{events:write,programme:read}', false, now())
    ON CONFLICT DO NOTHING;
-- It rests until the end: what it would be sent is written, and not sent.
INSERT INTO webhook_endpoints (endpoint_id, slot, url, created_at, failing_since, resume_at)
VALUES (pg_temp.id(12, 1), 1, 'https://hooks.example.com/bench', now(), now(),
        now() + interval '30 days');

-- Who buys, and of whom.
INSERT INTO participants (participant_id, programme_id, external_id, external_hash, created_at)
SELECT pg_temp.id(8, number), pg_temp.id(5, 2), external_id, external_hash, now()
  FROM people;
INSERT INTO standings (participant_id, programme_id, qualified)
SELECT pg_temp.id(8, number), pg_temp.id(5, 2), 10
  FROM generate_series(1, 1000) AS number;
INSERT INTO referrals (user_id, referrer_id, code, registered_at, programme_id, version, state,
                       reason, sequence, state_changed_at)
SELECT pg_temp.id(8, number), pg_temp.id(8, 1 + number % 1000), 'CODE-OF-BENCH',
       now() - interval '2 days', pg_temp.id(5, 2), 1, 'pending', 'signed-up', 1, now()
  FROM generate_series(1001, 7000) AS number;
INSERT INTO decisions (referral_id, sequence, state, review, reason, made_by, decided_at)
SELECT pg_temp.id(8, number), 1, 'pending', 'none', 'signed-up', 'system', now()
  FROM generate_series(1001, 7000) AS number;

-- What 100 accounts have to read: 100 rewards each, 200 transfers, two balances.
INSERT INTO participants (participant_id, programme_id, user_id, created_at)
SELECT pg_temp.id(1, n), '00000000-0000-7000-8000-000000000001', pg_temp.id(1, n), now()
  FROM generate_series(1, 100) AS n
    ON CONFLICT (participant_id) DO NOTHING;
INSERT INTO rewards (reward_id, programme_id, version, rule, participant_id, referral_id, cause_id,
                     unit, amount, state, available_at, created_at)
SELECT pg_temp.id(9, n * 1000 + place), '00000000-0000-7000-8000-000000000001', 900, 'friend',
       pg_temp.id(1, n), pg_temp.id(1, 1000000 + n * 1000 + place),
       pg_temp.id(1, 1000000 + n * 1000 + place), 'EUR', 500, 'available', now(),
       now() - place * interval '1 hour'
  FROM generate_series(1, 100) AS n
 CROSS JOIN generate_series(1, 100) AS place;
INSERT INTO transfers (transfer_id, programme_id, participant_id, unit, kind, from_account,
                       to_account, amount, reward_id, made_by, created_at)
SELECT pg_temp.id(10, n * 1000 + 2 * place + step), '00000000-0000-7000-8000-000000000001',
       pg_temp.id(1, n), 'EUR', (ARRAY['grant', 'release'])[step],
       (ARRAY['programme', 'pending'])[step], (ARRAY['pending', 'available'])[step], 500,
       pg_temp.id(9, n * 1000 + place), 'bench', now() - place * interval '1 hour'
  FROM generate_series(1, 100) AS n
 CROSS JOIN generate_series(1, 100) AS place
 CROSS JOIN generate_series(1, 2) AS step;
INSERT INTO balances (participant_id, unit, programme_id, available)
SELECT pg_temp.id(1, n), unit, '00000000-0000-7000-8000-000000000001', 50000
  FROM generate_series(1, 100) AS n
 CROSS JOIN (VALUES ('EUR'), ('bench')) AS units (unit)
    ON CONFLICT DO NOTHING;

-- What is due, of 1,000 referrers, in a programme that is paused until it is measured.
CREATE TEMPORARY TABLE due AS
SELECT n, pg_temp.id(11, n) AS referee_id, pg_temp.id(11, 1 + n % 1000) AS referrer_id
  FROM generate_series(1001, 1000 + current_setting('bench.due')::int) AS n;
INSERT INTO participants (participant_id, programme_id, external_id, external_hash, created_at)
SELECT pg_temp.id(11, n), pg_temp.id(5, 4), n::text, sha256(n::text::bytea), now()
  FROM generate_series(1, 1000 + current_setting('bench.due')::int) AS n;
INSERT INTO referrals (user_id, referrer_id, code, registered_at, programme_id, version, state,
                       reason, sequence, nth, state_changed_at)
SELECT referee_id, referrer_id, 'CODE-OF-BENCH', now() - interval '20 days', pg_temp.id(5, 4), 1,
       'qualified', 'qualified', 2, n / 1000, now()
  FROM due;
INSERT INTO decisions (referral_id, sequence, state, review, reason, made_by, decided_at)
SELECT referee_id, sequence, state, 'none', reason, 'system', now()
  FROM due
 CROSS JOIN (VALUES (1, 'pending', 'signed-up'), (2, 'qualified', 'qualified'))
         AS decisions (sequence, state, reason);
INSERT INTO events (event_id, programme_id, external_id, participant_id, type, amount, unit,
                    occurred_at, received_at, fingerprint)
SELECT pg_temp.id(7, 9000000 + n), pg_temp.id(5, 4), 'due-' || n, referee_id, 'purchase', 4900,
       'EUR', now() - interval '15 days', now(), ''
  FROM due;
INSERT INTO rewards (reward_id, programme_id, version, rule, participant_id, referral_id, cause_id,
                     unit, amount, state, available_at, created_at)
SELECT pg_temp.id(13, n), pg_temp.id(5, 4), 1, 'friend', referrer_id, referee_id, referee_id, 'EUR',
       500, 'pending', now() - interval '1 day', now()
  FROM due;
INSERT INTO transfers (transfer_id, programme_id, participant_id, unit, kind, from_account,
                       to_account, amount, reward_id, made_by, created_at)
SELECT pg_temp.id(14, n), pg_temp.id(5, 4), referrer_id, 'EUR', 'grant', 'programme', 'pending',
       500, pg_temp.id(13, n), 'system', now()
  FROM due;
INSERT INTO balances (participant_id, unit, programme_id, pending)
SELECT referrer_id, 'EUR', pg_temp.id(5, 4), 500 * count(*)
  FROM due
 GROUP BY referrer_id;
INSERT INTO standings (participant_id, programme_id, qualified)
SELECT referrer_id, pg_temp.id(5, 4), count(*)
  FROM due
 GROUP BY referrer_id;

-- Reviews: of every thousandth referral of `default`, and of a tenth of a thousand.
UPDATE referrals SET review = 'open'
 WHERE review = 'none'
   AND user_id IN (SELECT pg_temp.id(1, n) FROM generate_series(1000001, 11101000, 1000) AS n);
INSERT INTO referrals (user_id, referrer_id, code, registered_at, programme_id, version, state,
                       reason, review, sequence, state_changed_at)
SELECT pg_temp.id(15, n), pg_temp.id(15, 0), 'CODE-OF-BENCH', now() - n * interval '1 minute',
       pg_temp.id(5, 3), 1, 'pending', 'signed-up',
       CASE WHEN n % 10 = 0 THEN 'open' ELSE 'none' END, 1, now()
  FROM generate_series(1, 1000) AS n;
