"""Issuers that vouch for users: OpenID Connect and GitHub."""
