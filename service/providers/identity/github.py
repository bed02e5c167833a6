"""Signing in with GitHub: plain OAuth 2.0, so its API says who has signed in."""

from typing import Any
from urllib.parse import urlsplit

from service.domain.emails import Email
from service.domain.errors import SignInRefused
from service.domain.identities import AuthorizationAnswer, Identity, SignIn
from service.providers.http import HttpClient
from service.providers.identity.authorization import AuthorizationCodeFlow, email_of
from service.providers.settings import GitHubSettings


class GitHubProvider:
    """GitHub as an issuer: named by its site's address, its users by their account numbers."""

    def __init__(self, settings: GitHubSettings, redirect_uri: str, http: HttpClient) -> None:
        self.name = settings.name
        self.title = settings.title
        self._settings = settings
        self._http = http
        self._flow = AuthorizationCodeFlow(settings, redirect_uri, http)
        site = urlsplit(settings.authorize_url)
        self.issuer = f"{site.scheme}://{site.netloc}"

    async def authorization_url(self, state: str, nonce: str, code_verifier: str) -> str:
        """Return where to send the browser. GitHub has no nonce."""
        return self._flow.url(self._settings.authorize_url, state, code_verifier)

    async def identify(self, answer: AuthorizationAnswer, sign_in: SignIn) -> Identity:
        """Return who has signed in; raise SignInRefused or ProviderUnavailable."""
        tokens = await self._flow.redeem(self._settings.token_url, answer, sign_in, basic=False)
        access_token = tokens.text("access_token", 4096)
        if access_token is None:
            raise SignInRefused("GitHub gives no access token.")
        user = await self._get("/user", access_token)
        number = user.get("id") if isinstance(user, dict) else None
        if type(number) is not int:  # True is an int, too
            raise SignInRefused("GitHub does not say who has signed in.")
        email = _primary(await self._get("/user/emails", access_token))
        return Identity(
            issuer=self.issuer, subject=str(number), email=email, email_verified=email is not None
        )

    async def _get(self, path: str, access_token: str) -> Any:
        """Return what the API answers, or None if it refuses."""
        url = self._settings.api_url.rstrip("/") + path
        headers = {"Authorization": f"Bearer {access_token}"}
        reply = await self._http.call(self.name, "GET", url, headers=headers)
        return reply.document if reply.status == 200 else None


def _primary(emails: Any) -> Email | None:
    """Return the primary email address, if GitHub has verified it."""
    for entry in emails if isinstance(emails, list) else ():
        if isinstance(entry, dict) and entry.get("primary") is entry.get("verified") is True:
            return email_of(entry.get("email"))
    return None
