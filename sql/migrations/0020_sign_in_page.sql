-- The sign-in page: a sign-in with another issuer can go on with an application's request.
-- depends: 0019_limits

-- The query of the request to /oauth/authorize. It may be anyone's, and is checked again.
ALTER TABLE sign_ins ADD COLUMN IF NOT EXISTS authorization_request text;
