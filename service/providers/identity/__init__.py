"""Issuers that vouch for users: OpenID Connect and GitHub."""

from service.domain.clock import Clock
from service.providers.http import HttpClient
from service.providers.identity.github import GitHubProvider
from service.providers.identity.oidc import OidcProvider
from service.providers.settings import GitHubSettings, OidcSettings

Provider = OidcProvider | GitHubProvider


def make_provider(
    settings: OidcSettings | GitHubSettings, redirect_uri: str, http: HttpClient, clock: Clock
) -> Provider:
    """Return the client of an issuer, which sends browsers back to `redirect_uri`."""
    if isinstance(settings, OidcSettings):
        return OidcProvider(settings, redirect_uri, http, clock)
    return GitHubProvider(settings, redirect_uri, http)
