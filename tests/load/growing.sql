-- A million accounts: every fifth has a live code, all but the first were referred, each is
-- signed in once. Referrers are drawn so that few have many referrals and many have few.

INSERT INTO users (user_id, email, email_key, password_hash, role, created_at)
SELECT uuidv7(), email, email,
       '$argon2id$v=19$m=19456,t=2,p=1$' || repeat('s', 22) || '$' || repeat('h', 43),
       'user', timestamptz '2026-01-01 00:00Z' + number * interval '1 second'
  FROM (SELECT number, 'person' || number || '@example.com' AS email
          FROM generate_series(1, 1000000) AS number);

CREATE TEMPORARY TABLE numbered AS
SELECT user_id, created_at, row_number() OVER (ORDER BY created_at) AS number FROM users;
CREATE INDEX ON numbered (number);

INSERT INTO referral_codes (referral_code_id, owner_id, code, created_at, expires_at)
SELECT uuidv7(), user_id, upper(substr(md5(number::text), 1, 10)), created_at,
       timestamptz '2099-01-01 00:00Z'
  FROM numbered
 WHERE number % 5 = 0;

INSERT INTO referrals (user_id, referrer_id, code, registered_at, email_hash)
SELECT referral.user_id, referrer.user_id, upper(substr(md5(referrer.number::text), 1, 10)),
       referral.created_at, sha256(referral.user_id::text::bytea)
  FROM (SELECT *, 5 * ceil(200000 * power(hashint4(number::int)::numeric / 4294967296 + 0.5, 4))
                  AS referrer
          FROM numbered) AS referral
  JOIN numbered AS referrer ON referrer.number = greatest(5, referral.referrer)
 WHERE referrer.number <> referral.number;

INSERT INTO referral_code_uses (referral_code_id, slot, uses)
SELECT c.referral_code_id, slot, 1
  FROM referral_codes c
 CROSS JOIN generate_series(0, 3) AS slot;

INSERT INTO sessions (session_id, user_id, user_agent, created_at, refreshed_at, expires_at)
SELECT uuidv7(), user_id, 'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Safari/537.36',
       created_at, created_at, timestamptz '2099-01-01 00:00Z'
  FROM numbered;

VACUUM ANALYZE;
