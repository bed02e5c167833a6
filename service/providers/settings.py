"""What an operator decides about each provider. Imported before any settings are read, so cheap."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

EnrichmentProvider = Literal["hunter", "clearbit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcSettings:
    """An OpenID Connect issuer. Without a secret the service is a public client."""

    name: str
    title: str
    client_id: str
    client_secret: str | None = field(repr=False)
    scopes: str
    issuer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GitHubSettings:
    """GitHub, or a server with its API: OAuth 2.0 alone, and nothing to discover."""

    name: str
    title: str
    client_id: str
    client_secret: str | None = field(repr=False)
    scopes: str
    authorize_url: str
    token_url: str
    api_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HunterSettings:
    """Where email addresses are verified."""

    api_key: str = field(repr=False)
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrichmentSettings:
    """Which provider knows the people behind email addresses."""

    provider: EnrichmentProvider
    api_key: str = field(repr=False)
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpSettings:
    """The mail server: with `implicit_tls` smtps, otherwise STARTTLS if the server offers it."""

    host: str
    port: int
    implicit_tls: bool
    user: str | None
    password: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """How mails leave: by SMTP, or into a folder that developers look into."""

    sender: str
    app_url: str | None
    delivery: SmtpSettings | Path
