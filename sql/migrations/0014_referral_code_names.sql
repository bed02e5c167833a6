-- Referral code names: a name belongs to its first owner for ever, whatever becomes of the code.
-- depends: 0013_security_events

CREATE TABLE IF NOT EXISTS referral_code_names (
    -- The code with look-alikes folded: 0 and O are one, and so are 1, I and L.
    name     text PRIMARY KEY,
    -- Null once the owner's account is erased: the name stays taken. No foreign key: it would lock
    -- `users` until the table is filled, and every owner here has been checked in referral_codes.
    owner_id uuid
);

-- Most of the work, while the release before this one writes codes on.
INSERT INTO referral_code_names (name, owner_id)
SELECT DISTINCT ON (1)
       translate(c.code, 'OIL', '011'), CASE WHEN u.erased_at IS NULL THEN c.owner_id END
  FROM referral_codes c
  JOIN users u ON u.user_id = c.owner_id
 ORDER BY 1, c.created_at, c.referral_code_id
    ON CONFLICT (name) DO NOTHING;

-- An erased account lets go of its names.
CREATE INDEX IF NOT EXISTS referral_code_names_of_an_owner ON referral_code_names (owner_id);

-- From here on no code is written before all is committed.
LOCK TABLE referral_codes IN SHARE ROW EXCLUSIVE MODE;

-- What decides for every release. It fires after the row has passed the unique indexes, so that an
-- owner who holds a live code is refused for that. The second look has a snapshot of its own: it
-- sees the name for which the first one waited. Releases know the refusal by the index's name.
CREATE OR REPLACE FUNCTION claim_referral_code_name() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    claimed CONSTANT text := translate(NEW.code, 'OIL', '011');
BEGIN
    INSERT INTO referral_code_names (name, owner_id)
    VALUES (claimed, NEW.owner_id)
        ON CONFLICT (name) DO NOTHING;
    IF NOT FOUND THEN
        PERFORM FROM referral_code_names WHERE name = claimed AND owner_id = NEW.owner_id;
        IF NOT FOUND THEN
            RAISE unique_violation USING
                MESSAGE = 'the name of the referral code belongs to another owner',
                CONSTRAINT = 'referral_codes_live_code_unique';
        END IF;
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER referral_codes_claim_their_names
    AFTER INSERT ON referral_codes
    FOR EACH ROW EXECUTE FUNCTION claim_referral_code_name();

-- What was written between the first look and the lock; a day, because clocks differ.
INSERT INTO referral_code_names (name, owner_id)
SELECT DISTINCT ON (1)
       translate(c.code, 'OIL', '011'), CASE WHEN u.erased_at IS NULL THEN c.owner_id END
  FROM referral_codes c
  JOIN users u ON u.user_id = c.owner_id
 WHERE c.created_at > now() - interval '1 day'
 ORDER BY 1, c.created_at, c.referral_code_id
    ON CONFLICT (name) DO NOTHING;

-- The pages of GET /referral-codes: newest first.
CREATE INDEX IF NOT EXISTS referral_codes_of_an_owner_newest_first
    ON referral_codes (owner_id, created_at DESC, referral_code_id DESC);

-- Null: of a release that did not store it, and told from the rest of the row.
ALTER TABLE referral_codes ADD COLUMN IF NOT EXISTS end_reason text
    CONSTRAINT referral_codes_end_reason_known
    CHECK (end_reason IN ('expired', 'deleted', 'replaced', 'used-up'));
-- Housekeeping has seen that it was used: it stays for the record, and is not looked at again.
ALTER TABLE referral_codes ADD COLUMN IF NOT EXISTS kept boolean NOT NULL DEFAULT false;

-- For the housekeeping that deletes what nobody used.
CREATE INDEX IF NOT EXISTS referral_codes_ended_not_kept
    ON referral_codes (ended_at)
    WHERE ended_at IS NOT NULL AND NOT kept;
