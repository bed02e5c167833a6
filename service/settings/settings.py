"""The settings: read once at start, from the process environment and from an env file.

`.env.template` is the table of them for operators. All faults are reported together, because each
restart costs an operator time.
"""
# ruff: noqa: RUF009  # `setting` and its like return what dataclasses.field does

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from dotenv import dotenv_values

from service.domain.rate_limits import RateLimit
from service.postgresql.urls import PRIMARY_KINDS, STANDBY_KINDS
from service.providers.settings import (
    EnrichmentSettings,
    GitHubSettings,
    HunterSettings,
    MailSettings,
    OidcSettings,
)
from service.security.password_hashing import Argon2
from service.security.signing_keys import SigningKeys
from service.settings import groups, values
from service.settings.groups import MAILBOX
from service.settings.schema import SettingsError, dependent, group, load, setting
from service.settings.values import database_url, number, on_off, one_of
from service.telemetry.logs import LogFormat, LogLevel


def _limit(name: str, default: RateLimit | None) -> RateLimit | None:
    return setting(name, values.rate_limit, default)


@dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    """What a command needs that speaks to PostgreSQL alone."""

    database_url: str = setting("DATABASE_URL", database_url(*PRIMARY_KINDS), secret=True)
    database_prepared_statements: bool = setting("DATABASE_PREPARED_STATEMENTS", on_off, True)


@dataclass(frozen=True, kw_only=True)
class ServerSettings(DatabaseSettings):
    """What a command needs that speaks to Redis too."""

    redis_url: str = setting("REDIS_URL", values.redis_url, secret=True)


@dataclass(frozen=True, kw_only=True)
class KeySettings:
    """The signing keys, and the life of what they sign."""

    signing_keys: SigningKeys = setting("SIGNING_KEYS", values.signing_keys)
    access_token_ttl: timedelta = setting(
        "ACCESS_TOKEN_TTL_SECONDS", values.seconds(10, 86_400), timedelta(minutes=10)
    )


@dataclass(frozen=True, kw_only=True)
class Settings(ServerSettings, KeySettings):
    """What an operator decides. `None` stands for "not set", or for a limit that is off."""

    host: str = setting("HOST", str, "127.0.0.1")
    port: int = setting("PORT", number(1, 65_535), 8080)
    metrics_port: int | None = dependent("METRICS_PORT", groups.metrics_port, None)
    workers: int = setting("WORKERS", number(1, 256), 0)
    shutdown_delay: timedelta = setting(
        "SHUTDOWN_DELAY_SECONDS", values.seconds(0, 300), timedelta(0)
    )
    public_url: str = setting("PUBLIC_URL", values.public_url, "")
    service_name: str = setting("SERVICE_NAME", str, "referrals")
    database_replica_url: str | None = setting(
        "DATABASE_REPLICA_URL", database_url(*STANDBY_KINDS), None, secret=True
    )
    database_pool_size: int = setting("DATABASE_POOL_SIZE", number(1, 1000), 10)
    log_level: LogLevel = setting("LOG_LEVEL", one_of(*get_args(LogLevel)), "info")
    log_format: LogFormat = setting("LOG_FORMAT", one_of(*get_args(LogFormat)), "auto")
    refresh_token_ttl: timedelta = setting(
        "REFRESH_TOKEN_TTL_SECONDS", values.seconds(60, 31_536_000), timedelta(days=30)
    )
    refresh_token_keys: tuple[bytes, ...] = setting(
        "REFRESH_TOKEN_KEYS", values.secrets, secret=True
    )
    hash_key: bytes = setting("HASH_KEY", lambda text: values.secrets(text)[0], secret=True)
    password_min_length: int = setting("PASSWORD_MIN_LENGTH", number(8, 64), 8)
    argon2: Argon2 = group(
        groups.argon2,
        memory_kib=setting("ARGON2_MEMORY_KIB", number(8, 4_194_304), 19_456),
        passes=setting("ARGON2_PASSES", number(1, 100), 2),
        lanes=setting("ARGON2_LANES", number(1, 16), 1),
    )
    hashing_threads: int = setting("HASHING_THREADS", number(1, 64), 0)
    hashing_queue: int = setting("HASHING_QUEUE", number(1, 10_000), 64)
    cors_origins: frozenset[str] = setting("CORS_ORIGINS", values.origins, frozenset())
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = setting(
        "TRUSTED_PROXIES", values.networks, ()
    )
    rate_limit_register: RateLimit | None = _limit("RATE_LIMIT_REGISTER", RateLimit(20, 60))
    rate_limit_login: RateLimit | None = _limit("RATE_LIMIT_LOGIN", RateLimit(10, 60))
    rate_limit_lookup: RateLimit | None = _limit("RATE_LIMIT_LOOKUP", RateLimit(120, 60))
    rate_limit_write: RateLimit | None = _limit("RATE_LIMIT_WRITE", RateLimit(60, 60))
    rate_limit_client: RateLimit | None = _limit("RATE_LIMIT_CLIENT", None)
    rate_limit_mail: RateLimit | None = _limit("RATE_LIMIT_MAIL", RateLimit(10, 60))
    rate_limit_verification: RateLimit | None = _limit("RATE_LIMIT_VERIFICATION", RateLimit(30, 60))
    providers: tuple[OidcSettings | GitHubSettings, ...] = dependent(
        "PROVIDERS", groups.providers, ()
    )
    events_kept: timedelta = setting("EVENTS_KEPT_DAYS", values.days(1, 3660), timedelta(days=90))
    serve_jobs: bool = setting("SERVE_JOBS", on_off, True)
    hunter: HunterSettings | None = group(
        groups.hunter,
        api_key=setting("HUNTER_API_KEY", values.header, None),
        url=setting("HUNTER_URL", values.provider_url, groups.HUNTER_URL),
    )
    enrichment: EnrichmentSettings | None = group(
        groups.enrichment,
        provider=setting("ENRICHMENT_PROVIDER", one_of(*groups.ENRICHMENT_URLS), "hunter"),
        api_key=setting("ENRICHMENT_API_KEY", values.header, None),
        url=setting("ENRICHMENT_URL", values.provider_url, None),
    )
    mail: MailSettings | None = group(
        groups.mail,
        mailbox=setting(MAILBOX, Path, None),
        smtp=setting("SMTP_URL", values.smtp_url, None),
        sender=dependent("MAIL_FROM", groups.mail_from, None),
        app_url=setting("APP_URL", values.app_url, None),
    )
    confirmation_required: bool = dependent("EMAIL_CONFIRMATION", groups.email_confirmation, False)
    email_domains_allowed: frozenset[str] = setting(
        "EMAIL_DOMAINS_ALLOWED", values.domains, frozenset()
    )

    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = setting(
        "WEBHOOK_NETWORKS", values.networks, ()
    )

    @property
    def is_https(self) -> bool:
        """Whether clients reach the service over HTTPS, whatever the last proxy speaks."""
        return self.public_url.startswith("https:")

    @property
    def base_path(self) -> str:
        """What clients have before each path, and a proxy takes off: `/referrals`, or nothing."""
        return urlsplit(self.public_url).path


def read_settings(environ: Mapping[str, str], mailbox: Path | None = None) -> Settings:
    """Return the settings that `environ` gives; raise SettingsError with every fault.

    Without a mail server, mails go into the folder `mailbox` if there is one.
    """
    settings = load(Settings, {**environ, MAILBOX: str(mailbox) if mailbox else None})
    workers = settings.workers or available_cores()
    return replace(
        settings,
        workers=workers,
        public_url=settings.public_url or f"http://localhost:{settings.port}",
        hashing_threads=settings.hashing_threads or max(1, available_cores() // workers),
    )


def read_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the env file (`ENV_FILE`, by default `.env`) under `environ`'s.

    A variable that is set to nothing counts as not set. Raises SettingsError where the file that
    `ENV_FILE` names cannot be read: going on without it would silently use other settings.
    """
    named = environ.get("ENV_FILE")
    if named and (not Path(named).exists() or Path(named).is_dir()):
        raise SettingsError(f"ENV_FILE names {named}, which is not a file.")
    try:
        file = dotenv_values(named or ".env", interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingsError(f"ENV_FILE cannot be read: {reason}: {named or '.env'}.") from error
    return {name: value for source in (file, environ) for name, value in source.items() if value}


def available_cores() -> int:
    """Return how many cores this process may use: its cgroup's quota, then its affinity."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limit = int(quota) // int(period)
    except (OSError, ValueError):  # no cgroup, or no quota ("max")
        limit = affinity or 1
    return max(1, min(affinity or 1, limit))
