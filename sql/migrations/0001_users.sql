-- Accounts: whoever registers is a user; an erased account stays as a row without personal data.
-- depends:

CREATE TABLE IF NOT EXISTS users (
    user_id            uuid        PRIMARY KEY,
    -- As the person wrote it: for mail and for showing, never for comparing.
    email              text,
    -- What makes two spellings one account; made by the application alone, because lower() of
    -- the database and of Python differ outside ASCII.
    email_key          text,
    password_hash      text,
    role               text        NOT NULL,
    created_at         timestamptz NOT NULL,
    email_confirmed_at timestamptz,
    disabled_at        timestamptz,
    erased_at          timestamptz,

    CONSTRAINT users_email_unique UNIQUE (email_key),
    CONSTRAINT users_role_known CHECK (role IN ('user', 'admin')),
    CONSTRAINT users_have_an_email_until_erased
        CHECK ((erased_at IS NULL) = (email IS NOT NULL)
           AND (erased_at IS NULL) = (email_key IS NOT NULL)),
    CONSTRAINT users_erased_keep_no_password
        CHECK (erased_at IS NULL OR password_hash IS NULL)
);

-- The pages of GET /admin/users: newest first.
CREATE INDEX IF NOT EXISTS users_newest_first ON users (created_at DESC, user_id DESC);
