-- The data set of the benchmark, on the empty schema of the migrations:
--
--   users 1 … 1 000 000           person<n>@example.com; the first 200 000 have a live code; the
--                                 first 2 000 and those after 900 000 up to 902 000 a session
--   users 1 000 001 … 11 101 000  the referrals of users 1, 2 and 3: 10³, 10⁵ and 10⁷
--
-- Ids are ordered by time, as the service's own (UUIDv7) are. Indexes are dropped for the loading
-- and made again, each by its own definition; foreign keys are not checked, as all rows are ours.

SET LOCAL session_replication_role = replica;
SET LOCAL maintenance_work_mem = '1GB';
SET LOCAL max_parallel_maintenance_workers = 2;
SET LOCAL synchronous_commit = off;

CREATE FUNCTION pg_temp.id(kind integer, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex(1750000000000 + n), 12, '0') || '7' || lpad(to_hex(kind), 3, '0')
            || '8000' || lpad(to_hex(n), 12, '0'))::uuid
$$;

CREATE TEMPORARY TABLE dropped ON COMMIT DROP AS
SELECT c.oid, i.indexrelid::regclass::text AS index_name, i.indrelid::regclass::text AS table_name,
       k.conname, pg_get_constraintdef(k.oid) AS constraint_definition,
       pg_get_indexdef(i.indexrelid) AS index_definition
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indrelid AND c.relname IN ('users', 'referrals')
  LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('u', 'p');

CREATE TEMPORARY TABLE foreign_keys ON COMMIT DROP AS
SELECT conname, conrelid::regclass::text AS table_name, pg_get_constraintdef(oid) AS definition
  FROM pg_constraint
 WHERE contype = 'f' AND confrelid IN ('users'::regclass, 'referrals'::regclass);

DO $$
DECLARE it record;
BEGIN
    FOR it IN SELECT * FROM foreign_keys LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', it.table_name, it.conname);
    END LOOP;
    FOR it IN SELECT * FROM dropped LOOP
        IF it.conname IS NULL THEN
            EXECUTE format('DROP INDEX %s', it.index_name);
        ELSE
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', it.table_name, it.conname);
        END IF;
    END LOOP;
END $$;

INSERT INTO users (user_id, email, email_key, password_hash, role, created_at)
SELECT pg_temp.id(1, n), 'person' || n || '@example.com', 'person' || n || '@example.com',
       'nobody signs in', 'user', timestamptz '2025-06-15 00:00:00Z' + n * interval '1 ms'
  FROM generate_series(1, 11101000) n;

INSERT INTO referrals (user_id, referrer_id, code, registered_at, email_hash)
SELECT pg_temp.id(1, n),
       pg_temp.id(1, CASE WHEN n <= 1001000 THEN 1 WHEN n <= 1101000 THEN 2 ELSE 3 END),
       'CODE-OF-OLD', timestamptz '2025-06-15 00:00:00Z' + n * interval '1 ms',
       decode(md5('a' || n) || md5('b' || n), 'hex')
  FROM generate_series(1000001, 11101000) n;

INSERT INTO referral_codes (referral_code_id, owner_id, code, created_at, expires_at)
SELECT pg_temp.id(2, n), pg_temp.id(1, n), 'PERSON-' || n, now(),
       now() + (30 + n % 300) * interval '1 day'
  FROM generate_series(1, 200000) n;

-- The trigger does it otherwise.
INSERT INTO referral_code_names (name, owner_id)
SELECT translate(code, 'OIL', '011'), owner_id
  FROM referral_codes;

INSERT INTO sessions (session_id, user_id, client_id, origin, created_at, refreshed_at, expires_at)
SELECT pg_temp.id(3, n), pg_temp.id(1, n), 'first-party', 'password', now(), now(),
       now() + interval '300 days'
  FROM generate_series(1, 902000) n
 WHERE n <= 2000 OR n > 900000;

DO $$
DECLARE it record;
BEGIN
    FOR it IN SELECT * FROM dropped LOOP
        IF it.conname IS NULL THEN
            EXECUTE it.index_definition;
        ELSE
            EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s',
                           it.table_name, it.conname, it.constraint_definition);
        END IF;
    END LOOP;
    FOR it IN SELECT * FROM foreign_keys LOOP
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s NOT VALID',
                       it.table_name, it.conname, it.definition);
    END LOOP;
END $$;
