-- What the benchmark of events begins with, on the data set of data.sql: a programme of its own, in
-- which 6,000 people were referred and 1,000 others were not, and two kinds of 100 regular customers
-- with 10 events each and as many as the setting bench.kept says. `people` holds the hash of each
-- company's id.

CREATE OR REPLACE FUNCTION pg_temp.id(kind integer, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE
AS $$
    SELECT (lpad(to_hex(1750000000000 + n), 12, '0') || '7' || lpad(to_hex(kind), 3, '0')
            || '8000' || lpad(to_hex(n), 12, '0'))::uuid
$$;

DELETE FROM events WHERE programme_id = pg_temp.id(5, 1);
DELETE FROM decisions USING referrals r
 WHERE r.user_id = decisions.referral_id AND r.programme_id = pg_temp.id(5, 1);
DELETE FROM referrals WHERE programme_id = pg_temp.id(5, 1);
DELETE FROM standings WHERE programme_id = pg_temp.id(5, 1);
-- What rewards.sql gives a referrer that both have.
CREATE TEMPORARY TABLE taking_part ON COMMIT DROP AS
SELECT participant_id FROM participants WHERE programme_id = pg_temp.id(5, 1);
DELETE FROM transfers WHERE participant_id IN (TABLE taking_part);
DELETE FROM rewards WHERE participant_id IN (TABLE taking_part);
DELETE FROM balances WHERE participant_id IN (TABLE taking_part);
DELETE FROM participants WHERE programme_id = pg_temp.id(5, 1);
INSERT INTO programmes (programme_id, key, name, version, created_at)
VALUES (pg_temp.id(5, 1), 'bench', 'Bench', 1, now())
    ON CONFLICT DO NOTHING;
INSERT INTO programme_versions (programme_id, version, rules, made_by, created_at)
VALUES (pg_temp.id(5, 1), 1,
        '{"qualify": {"on": "purchase", "minimum": {"amount": 2000, "unit": "EUR"}}}',
        'system', now())
    ON CONFLICT DO NOTHING;
INSERT INTO oauth_clients (client_id, name, secret_hash, redirect_uris, scopes, grants, own_scopes,
                           resource_server, created_at)
VALUES ('bench', 'Bench', sha256('bench'), '{}', '{}', '{client_credentials}', '{events:write}',
        false, now())
    ON CONFLICT DO NOTHING;

INSERT INTO participants (participant_id, programme_id, external_id, external_hash, created_at)
SELECT pg_temp.id(6, number), pg_temp.id(5, 1), external_id, external_hash, now()
  FROM people;
-- Referrer 3 of data.sql, with ten million referrals in the programme `default`.
INSERT INTO participants (participant_id, programme_id, user_id, created_at)
VALUES (pg_temp.id(1, 3), pg_temp.id(5, 1), pg_temp.id(1, 3), now())
    ON CONFLICT (participant_id) DO UPDATE SET programme_id = excluded.programme_id;
INSERT INTO standings (participant_id, programme_id, qualified)
SELECT pg_temp.id(6, number), pg_temp.id(5, 1), 10
  FROM generate_series(1, 1000) AS number;
INSERT INTO standings (participant_id, programme_id, qualified)
SELECT pg_temp.id(1, 3), pg_temp.id(5, 1), count(*)
  FROM referrals
 WHERE referrer_id = pg_temp.id(1, 3)
    ON CONFLICT (participant_id) DO UPDATE SET programme_id = excluded.programme_id;

-- Those who buy, and after them the regular customers.
INSERT INTO referrals (user_id, referrer_id, code, registered_at, programme_id, version, state,
                       reason, sequence, state_changed_at)
SELECT pg_temp.id(6, number), pg_temp.id(6, 1 + number % 1000), 'CODE-OF-BENCH',
       now() - interval '2 days', pg_temp.id(5, 1), 1, 'pending', 'signed-up', 1, now()
  FROM generate_series(1001, 7200) AS number;
INSERT INTO decisions (referral_id, sequence, state, review, reason, made_by, decided_at)
SELECT pg_temp.id(6, number), 1, 'pending', 'none', 'signed-up', 'system', now()
  FROM generate_series(1001, 7200) AS number;
INSERT INTO events (event_id, programme_id, external_id, participant_id, type, amount, unit,
                    occurred_at, received_at, fingerprint)
SELECT pg_temp.id(7, number * 100000 + event), pg_temp.id(5, 1),
       'kept-' || number || '-' || event, pg_temp.id(6, number), 'purchase', 4900, 'EUR',
       now() - interval '1 day' + event * interval '1 s', now(), ''
  FROM generate_series(7001, 7200) AS number
 CROSS JOIN generate_series(1, current_setting('bench.kept')::int) AS event
 WHERE number > 7100 OR event <= 10;
