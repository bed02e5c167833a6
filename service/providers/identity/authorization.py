"""A client's authorization code flow, the same with every issuer (RFC 6749, 4.1; RFC 7636)."""

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import quote_plus, urlencode

from aiohttp import encode_basic_auth

from service.domain.emails import Email, parse_email
from service.domain.errors import EmailMalformed, ProviderUnavailable, SignInRefused
from service.domain.identities import AuthorizationAnswer, SignIn
from service.domain.oauth import challenge_of
from service.providers.http import HttpClient, Reply, is_text
from service.providers.settings import GitHubSettings, OidcSettings

LONGEST_EMAIL: Final = 254
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,50}")
_CODE_REFUSED: Final = {"invalid_grant", "bad_verification_code"}  # GitHub's own word
_NOT_NOW: Final = {"server_error", "temporarily_unavailable"}
log = logging.getLogger(__name__)


class AuthorizationCodeFlow:
    """Sends browsers to an issuer with PKCE, and redeems the codes that they come back with."""

    def __init__(
        self, settings: OidcSettings | GitHubSettings, redirect_uri: str, http: HttpClient
    ) -> None:
        self._settings = settings
        self._redirect_uri = redirect_uri
        self._http = http

    def url(self, endpoint: str, state: str, code_verifier: str, **more: str) -> str:
        """Return where to send the browser; `more` are parameters of this kind of issuer."""
        parameters = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": self._settings.scopes,
            "state": state,
            "code_challenge": challenge_of(code_verifier),
            "code_challenge_method": "S256",
            **more,
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(parameters)}"

    async def redeem(
        self, endpoint: str, answer: AuthorizationAnswer, sign_in: SignIn, *, basic: bool
    ) -> Reply:
        """Return what the issuer gives for the code; raise SignInRefused or ProviderUnavailable.

        With `basic`, a secret goes into the header, otherwise into the form (RFC 6749, 2.3.1).
        """
        form = {
            "grant_type": "authorization_code",
            "code": _code_of(answer),
            "redirect_uri": self._redirect_uri,
            "code_verifier": sign_in.code_verifier,
        }
        headers, more = self._authenticate(basic)
        reply = await self._http.call(
            self._settings.name, "POST", endpoint, data={**form, **more}, headers=headers
        )
        # GitHub refuses with the status 200.
        error = reply.text("error", 50)
        if error in _CODE_REFUSED:
            raise SignInRefused("The issuer does not accept the code.")
        if error is not None or reply.status != 200:
            known = error if error and _ERROR_CODE.fullmatch(error) else "no known error"
            log.error("%s did not issue tokens: %s", self._settings.name, known)
            raise ProviderUnavailable
        return reply

    def _authenticate(self, basic: bool) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Return the headers and the form's members that authenticate this client."""
        client_id, secret = self._settings.client_id, self._settings.client_secret
        if secret is None:
            return {}, {"client_id": client_id}
        if basic:
            login = encode_basic_auth(quote_plus(client_id), quote_plus(secret))
            return {"Authorization": login}, {}
        return {}, {"client_id": client_id, "client_secret": secret}


def _code_of(answer: AuthorizationAnswer) -> str:
    if answer.error in _NOT_NOW:
        raise ProviderUnavailable
    if answer.error == "access_denied":
        raise SignInRefused("The user or the issuer has denied it.")
    if answer.error is not None or not answer.code:
        raise SignInRefused("The issuer sends no code.")
    return answer.code


def email_of(value: object) -> Email | None:
    """Return an issuer's email address if an account can have it."""
    with suppress(EmailMalformed):
        return parse_email(str(value)) if is_text(value, LONGEST_EMAIL) else None
    return None
