-- Identities and undo: identities have an id and the email address they came with; changes of an account can be undone.
-- depends: 0016_mailboxes

-- The session that asked for a change of email address: the token is good no longer than it lasts.
ALTER TABLE mail_tokens ADD COLUMN IF NOT EXISTS session_id uuid;

-- The default is for the release before, which names none.
ALTER TABLE identities ADD COLUMN IF NOT EXISTS identity_id uuid NOT NULL DEFAULT gen_random_uuid();
ALTER TABLE identities ADD COLUMN IF NOT EXISTS email text;
ALTER TABLE identities ADD COLUMN IF NOT EXISTS email_key text;
UPDATE identities i
   SET email = u.email, email_key = u.email_key
  FROM users u
 WHERE u.user_id = i.user_id
   AND i.email_key IS NULL;
CREATE UNIQUE INDEX IF NOT EXISTS identities_id_unique ON identities (identity_id);

CREATE TABLE IF NOT EXISTS account_changes (
    account_change_id uuid        PRIMARY KEY,
    user_id           uuid        NOT NULL REFERENCES users (user_id),
    -- Counts an account's changes: undoing a change of address ends those that came after it.
    number            integer     NOT NULL,
    kind              text        NOT NULL,
    -- Where the mail goes: to the old address, or to the account's when an identity was linked.
    email             text        NOT NULL,
    email_key         text        NOT NULL,
    email_confirmed   boolean     NOT NULL,
    -- The identity that was linked.
    issuer            text,
    subject           text,
    -- A linked identity that was refused stays, so that it is not linked to the account again.
    undone            boolean     NOT NULL DEFAULT false,
    -- Whether the password has been changed since.
    password_changed  boolean     NOT NULL DEFAULT false,
    -- SHA-256 of the token in the mail. NULL until it is sent.
    token_hash        bytea,
    expires_at        timestamptz NOT NULL,

    CONSTRAINT account_changes_numbered UNIQUE (user_id, number),
    CONSTRAINT account_changes_token_unique UNIQUE (token_hash),
    CONSTRAINT account_changes_kind_known
        CHECK (kind = 'email' AND issuer IS NULL AND subject IS NULL
            OR kind = 'identity' AND issuer IS NOT NULL AND subject IS NOT NULL)
);

-- For the housekeeping that deletes what has expired.
CREATE INDEX IF NOT EXISTS account_changes_by_expiry ON account_changes (expires_at);
