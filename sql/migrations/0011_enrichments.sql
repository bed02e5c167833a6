-- Enrichments: what a data provider says about the person behind an e-mail, apart from the account.
-- depends: 0010_email_confirmation

CREATE TABLE IF NOT EXISTS enrichments (
    user_id    uuid        PRIMARY KEY REFERENCES users (user_id),
    person     jsonb,
    company    jsonb,
    source     text        NOT NULL,
    fetched_at timestamptz NOT NULL
);
