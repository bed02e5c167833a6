"""Settings that depend on several variables, and the rules between these."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from marshmallow import ValidationError

from service.domain.emails import parse_email
from service.domain.errors import EmailMalformed
from service.providers.settings import (
    EnrichmentProvider,
    EnrichmentSettings,
    GitHubSettings,
    HunterSettings,
    MailSettings,
    OidcSettings,
    SmtpSettings,
)
from service.security.password_hashing import Argon2
from service.settings.schema import Environment, Group, setting
from service.settings.values import domains, number, one_of, provider_url, words

HUNTER_URL: Final = "https://api.hunter.io"
ENRICHMENT_URLS: Final[Mapping[EnrichmentProvider, str]] = {
    "hunter": HUNTER_URL,
    "clearbit": "https://person.clearbit.com",
}
_GITHUB_URLS: Final = {
    "authorize_url": "https://github.com/login/oauth/authorize",
    "token_url": "https://github.com/login/oauth/access_token",
    "api_url": "https://api.github.com",
}
MAILBOX: Final = "mailbox"
"""Not a variable: `dev` says where mails go that no server takes."""
_PROVIDER_NAME: Final = re.compile(r"(?!password$)[a-z][a-z0-9]{0,31}")
"""Sessions that begin with a password are named `password`."""


def argon2(*, memory_kib: int, passes: int, lanes: int) -> Argon2:
    if memory_kib < 8 * lanes:
        raise ValidationError(
            {"ARGON2_MEMORY_KIB": ["must be at least 8 for each of ARGON2_LANES."]}
        )
    return Argon2(memory_kib=memory_kib, passes=passes, lanes=lanes)


def metrics_port(text: str, environ: Environment) -> int:
    port = number(1, 65_535)(text)
    if text == environ.get("PORT", "8080"):
        raise ValidationError("must differ from PORT.")
    return port


def hunter(*, api_key: str | None, url: str) -> HunterSettings | None:
    return HunterSettings(api_key=api_key, url=url.rstrip("/")) if api_key else None


def enrichment(
    *, provider: EnrichmentProvider, api_key: str | None, url: str | None
) -> EnrichmentSettings | None:
    url = (url or ENRICHMENT_URLS[provider]).rstrip("/")
    return EnrichmentSettings(provider=provider, api_key=api_key, url=url) if api_key else None


def mail(
    *, mailbox: Path | None, smtp: SmtpSettings | None, sender: str | None, app_url: str | None
) -> MailSettings | None:
    if smtp and sender is None:
        raise ValidationError({"MAIL_FROM": ["is not set; mails need a sender."]})
    delivery = smtp or mailbox
    if delivery is None:
        return None
    sender = sender or "referrals@localhost.test"
    return MailSettings(sender=sender, app_url=app_url, delivery=delivery)


def mail_from(text: str, environ: Environment) -> str:
    """An email address, whose domain may be one of EMAIL_DOMAINS_ALLOWED."""
    try:
        allowed = domains(environ.get("EMAIL_DOMAINS_ALLOWED") or "")
    except ValidationError:  # which is reported under that variable
        allowed = frozenset()
    try:
        return parse_email(text, allowed).mailbox
    except EmailMalformed as error:
        raise ValidationError("must be an email address.") from error


def email_confirmation(text: str, environ: Environment) -> bool:
    required = one_of("required", "off")(text) == "required"
    if required and not (environ.get("SMTP_URL") or environ.get(MAILBOX)):
        raise ValidationError("needs a mail server: set SMTP_URL.")
    return required


def providers(text: str, environ: Environment) -> tuple[OidcSettings | GitHubSettings, ...]:
    """Names between commas, each with variables of its own: PROVIDER_<NAME>_…"""
    names = words(text)
    for name in names:
        if not _PROVIDER_NAME.fullmatch(name) or names.count(name) > 1:
            raise ValidationError(
                f"{name!r} occurs twice, or is not a name of lower-case letters and digits."
            )
    found, faults = [], dict[str, Any]()
    for name in names:
        try:
            found.append(_provider(name, f"PROVIDER_{name.upper()}_", environ))
        except ValidationError as error:
            faults |= error.messages_dict
    if faults:
        raise ValidationError(faults)
    return tuple(found)


def _provider(name: str, prefix: str, environ: Environment) -> OidcSettings | GitHubSettings:
    kind = environ.get(f"{prefix}KIND", "github" if name == "github" else "oidc")
    client = {
        "client_id": setting(f"{prefix}CLIENT_ID", str),
        "client_secret": setting(f"{prefix}CLIENT_SECRET", str, None),
        "title": setting(f"{prefix}TITLE", str, "GitHub" if kind == "github" else name.title()),
    }
    if kind == "oidc":
        client["issuer"] = setting(f"{prefix}ISSUER", provider_url)
        client["scopes"] = setting(f"{prefix}SCOPES", _scopes, "openid email")
        return Group(partial(OidcSettings, name=name), client).deserialize(None, data=environ)
    if kind == "github":
        client["scopes"] = setting(f"{prefix}SCOPES", str, "user:email")
        for url, default in _GITHUB_URLS.items():
            client[url] = setting(f"{prefix}{url.upper()}", provider_url, default)
        return Group(partial(GitHubSettings, name=name), client).deserialize(None, data=environ)
    raise ValidationError({f"{prefix}KIND": ["must be one of oidc, github."]})


def _scopes(text: str) -> str:
    if "openid" not in text.split(" "):
        raise ValidationError("must contain the word openid.")
    return text
