"""OAuth 2.0: the service as an authorization server."""
