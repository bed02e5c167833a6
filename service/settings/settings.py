"""The settings: read once at start, from the process environment and from an env file.

`.env.template` names every variable with its meaning; this schema is what reads them. All
faults are told together, because an operator who mends them one by one restarts once for each.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import unquote, urlsplit

import idna
from dotenv import dotenv_values
from jwt.exceptions import PyJWTError
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate, validates_schema

from service.domain.errors import EmailMalformed
from service.domain.identities import is_safe_url
from service.domain.users import parse_email
from service.postgresql.urls import (
    PRIMARY_KINDS,
    STANDBY_KINDS,
    DatabaseUrlError,
    parse_database_url,
)
from service.redis.urls import faults_of_parameters, read_redis_url
from service.security.tokens import SigningKey, SigningKeys

LogFormat = Literal["json", "text", "auto"]
LogLevel = Literal["debug", "info", "warning", "error"]
EmailConfirmation = Literal["required", "off"]
EnrichmentProvider = Literal["hunter", "clearbit"]
OnOff = Literal["on", "off"]
HUNTER_URL: Final = "https://api.hunter.io"
CLEARBIT_URL: Final = "https://person.clearbit.com"
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
SECONDS_OF = {"second": 1, "minute": 60, "hour": 3600}


class SettingsError(Exception):
    """Settings that the service cannot start with: one line for each faulty variable."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `requests` in each window of `seconds`."""

    requests: int
    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Argon2:
    """The cost of one password hash (RFC 9106)."""

    memory_kib: int
    passes: int
    lanes: int


OWASP_ARGON2: Final = ((47_104, 1), (19_456, 2), (12_288, 3), (9216, 4), (7168, 5))
"""The least costs of a hash, in KiB and passes, that OWASP's Password Storage Cheat Sheet names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcSettings:
    """An issuer that speaks OpenID Connect. Without a secret the service is a public client."""

    name: str
    title: str
    client_id: str
    client_secret: str | None = field(repr=False)
    scopes: str
    issuer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GitHubSettings:
    """GitHub, or another that speaks as it does: OAuth 2.0 alone, and nothing to discover."""

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
    """Where e-mails are verified."""

    api_key: str = field(repr=False)
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrichmentSettings:
    """Who is asked about the people behind e-mails."""

    provider: EnrichmentProvider
    api_key: str = field(repr=False)
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpSettings:
    """The mail server. `implicit_tls` is smtps; else STARTTLS is used where the server has it."""

    host: str
    port: int
    implicit_tls: bool
    user: str | None
    password: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """How mails leave: by `smtp`, or into a folder that developers look into."""

    sender: str
    app_url: str | None
    delivery: SmtpSettings | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator decides. Durations are timedeltas, `None` stands for "not set"."""

    host: str
    port: int
    metrics_port: int | None
    workers: int
    shutdown_delay: timedelta
    public_url: str
    service_name: str
    database_url: str = field(repr=False)
    database_replica_url: str | None = field(repr=False)
    database_pool_size: int
    database_prepared_statements: bool
    redis_url: str = field(repr=False)
    log_level: LogLevel
    log_format: LogFormat
    access_token_ttl: timedelta
    refresh_token_ttl: timedelta
    password_min_length: int
    argon2: Argon2
    hashing_threads: int
    hashing_queue: int
    cors_origins: frozenset[str]
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    rate_limit_register: RateLimit | None
    rate_limit_login: RateLimit | None
    rate_limit_lookup: RateLimit | None
    rate_limit_write: RateLimit | None
    signing_keys: SigningKeys
    refresh_token_keys: tuple[bytes, ...] = field(repr=False)
    hash_key: bytes = field(repr=False)
    providers: tuple[OidcSettings | GitHubSettings, ...]
    rate_limit_mail: RateLimit | None
    rate_limit_verification: RateLimit | None
    serve_jobs: bool
    hunter: HunterSettings | None
    enrichment: EnrichmentSettings | None
    mail: MailSettings | None
    confirmation_required: bool
    email_domains_allowed: frozenset[str]

    @property
    def base_path(self) -> str:
        """What clients have before each path, and a proxy takes off: `/referrals`, or nothing."""
        return urlsplit(self.public_url).path


class _RateLimit(fields.Field[RateLimit | None]):
    """`N/second`, `N/minute`, `N/hour` or `off`."""

    _FORM = re.compile(r"([1-9]\d{0,8})/(second|minute|hour)")

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> RateLimit | None:
        if value == "off":
            return None
        if not (parts := self._FORM.fullmatch(value)):
            raise ValidationError("must be N/second, N/minute, N/hour or off.")
        return RateLimit(int(parts[1]), SECONDS_OF[parts[2]])


class _Words(fields.Field[list[str]]):
    """Words between commas."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> list[str]:
        return [word.strip() for word in value.split(",") if word.strip()]


class _Origins(_Words):
    """Web origins (RFC 6454) between commas, `https://*.example.com` for all subdomains, or `*`."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> Any:
        origins, faults = set(), []
        for word in super()._deserialize(value, attr, data):
            try:
                origins.add("*" if word == "*" else _read_origin(word))
            except ValueError:
                faults.append(f"{word!r} is not an origin such as https://app.example.com.")
        if faults:
            raise ValidationError(faults)
        return frozenset(origins)


def _read_origin(word: str) -> str:
    """Return the origin as browsers send it; raise ValueError where it is none."""
    parts = urlsplit(word)
    host, port = parts.hostname or "", parts.port
    nothing_else = parts.path in {"", "/"} and not (parts.query or parts.fragment)
    if parts.scheme not in DEFAULT_PORTS or "@" in parts.netloc or not nothing_else:
        raise ValueError
    star, name = ("*.", host[2:]) if host.startswith("*.") else ("", host)
    if ":" in name:
        name = f"[{IPv6Address(name)}]"
    elif not name.isascii():
        name = idna.encode(name, uts46=True).decode()
    if not _HOST.fullmatch(name):
        raise ValueError
    shown = "" if port in {None, DEFAULT_PORTS[parts.scheme]} else f":{port}"
    return f"{parts.scheme}://{star}{name}{shown}"


def _is_origin(word: str) -> bool:
    try:
        parts = urlsplit(word)
    except ValueError:
        return False
    http = parts.scheme in DEFAULT_PORTS and parts.username is None
    return http and bool(parts.netloc) and word == f"{parts.scheme}://{parts.netloc}"


class _Networks(_Words):
    """IP addresses or networks between commas."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> Any:
        try:
            return tuple(ip_network(word) for word in super()._deserialize(value, attr, data))
        except ValueError as error:
            raise ValidationError(f"{error}.") from error


class _Secrets(_Words):
    """Secrets between commas, of 32 characters or more; the first one is used for new things."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> Any:
        words = super()._deserialize(value, attr, data)
        if not words or min(map(len, words)) < 32:
            raise ValidationError("must be 32 characters or more.")
        try:
            return tuple(word.encode() for word in words)
        except UnicodeEncodeError as error:
            raise ValidationError("must be UTF-8.") from error


class _SigningKeys(fields.Field[SigningKeys]):
    """A JWK set (RFC 7517) of private P-256 keys; the first one signs, all verify."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> SigningKeys:
        try:
            jwks = json.loads(value)["keys"]
            return SigningKeys(tuple(SigningKey.from_jwk(jwk) for jwk in jwks))
        except (ValueError, KeyError, TypeError, RecursionError, PyJWTError) as error:
            raise ValidationError(
                "must be a JWK set with a private P-256 key; "
                "`python -m service keys generate` makes one."
            ) from error


class _Url(fields.String):
    """A URL of one of the given schemes. The value is never repeated: it may hold a password."""

    def __init__(self, *schemes: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._schemes = schemes

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> str:
        if not self._is_one(value):
            beginnings = " or ".join(f"{scheme}://" for scheme in self._schemes)
            raise ValidationError(f"must be a URL that begins with {beginnings}.")
        return str(value)

    def _is_one(self, value: str) -> bool:
        try:
            parts = urlsplit(value)
            _ = parts.port  # raises where it is no number
        except ValueError:
            return False
        has_host = bool(parts.hostname) or parts.scheme not in {"http", "https"}
        return (
            parts.scheme in self._schemes
            and value[len(parts.scheme) :].startswith("://")
            and has_host
        )


class _DatabaseUrl(fields.String):
    """A URL of PostgreSQL, which may name several hosts between commas: then also the kind wanted.

    Without that kind a connection would be to any of them, and writes would go to a standby.
    """

    def __init__(self, *kinds: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kinds = kinds

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> str:
        try:
            url = parse_database_url(value)
        except DatabaseUrlError as error:
            raise ValidationError([*error.faults]) from error
        if len(url.hosts) > 1 and url.kind_wanted not in self._kinds:
            raise ValidationError(f"has several hosts: add target_session_attrs={self._kinds[0]}.")
        return str(value)


class _RedisUrl(_Url):
    """A URL of one server, or of the sentinels of a primary."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("redis", "rediss", "unix", **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        try:
            urls = read_redis_url(value).named
        except ValueError as error:
            raise ValidationError(str(error)) from error
        for url in urls:
            super()._deserialize(url, attr, data, **kwargs)
        if faults := [fault for url in urls for fault in faults_of_parameters(url)]:
            raise ValidationError([*dict.fromkeys(faults)])
        return str(value)


class _SmtpUrl(_Url):
    """`smtp://USER:PASSWORD@HOST:PORT` or `smtps://…`; user and password percent-encoded."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("smtp", "smtps", **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        parts = urlsplit(super()._deserialize(value, attr, data, **kwargs))
        if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValidationError("must have a host, and nothing behind the port.")
        if bool(parts.username) != bool(parts.password):
            raise ValidationError("must have a user and a password, or neither.")
        implicit_tls = parts.scheme == "smtps"
        return SmtpSettings(
            host=parts.hostname,
            port=parts.port or (465 if implicit_tls else 587),
            implicit_tls=implicit_tls,
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )


class _Domains(_Words):
    """Domains between commas."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> Any:
        words = [word.lower().removeprefix(".") for word in super()._deserialize(value, attr, data)]
        if not all(map(_HOST.fullmatch, words)):
            raise ValidationError("must be domains between commas, such as local,lan.")
        return frozenset(words)


class _Address(fields.String):
    """An email address, whose domain may be one of EMAIL_DOMAINS_ALLOWED."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> str:
        try:
            allowed = _Domains().deserialize(data.get("EMAIL_DOMAINS_ALLOWED", ""))
        except ValidationError:  # which is reported under that variable
            allowed = frozenset()
        try:
            return parse_email(value, allowed).mailbox
        except EmailMalformed as error:
            raise ValidationError("must be an email address.") from error


class _PublicUrl(_Url):
    """Where clients reach the service: an origin, and the path that a proxy takes off."""

    _PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        url = super()._deserialize(value, attr, data, **kwargs).rstrip("/")
        path = urlsplit(url).path
        if not _is_origin(url.removesuffix(path)):
            raise ValidationError("must have no query and no user.")
        if not self._PATH.fullmatch(path):
            raise ValidationError("must have a path of plain words, /referrals, or none.")
        return url


class _AppUrl(_Url):
    """Where the front end begins: paths are added to it, and a `#` with a token."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        url = super()._deserialize(value, attr, data, **kwargs).rstrip("/")
        if set("?#@ ") & set(url) or not url.isprintable():
            raise ValidationError("must have no query, no fragment and no user.")
        return url


class _ProviderUrl(fields.String):
    """An address of a provider: https, or http on loopback, with nothing behind its path."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> str:
        if not is_safe_url(value) or set("?#@") & set(value) or not value.isprintable():
            raise ValidationError("must be a URL that begins with https://, without ?, # and @.")
        return str(value)


class _Header(fields.String):
    """A secret that is sent in a header. The value is never repeated."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> str:
        if not re.fullmatch(r"[\x21-\x7e]+", value):
            raise ValidationError("must be printable ASCII without spaces.")
        return str(value)


class _Providers(_Words):
    """Names between commas, each with variables of its own: PROVIDER_<NAME>_…"""

    _NAME = re.compile(r"[a-z][a-z0-9]{0,31}")
    _RESERVED = frozenset({"password"})  # that is how other sessions begin

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> Any:
        names = super()._deserialize(value, attr, data)
        for name in names:
            if not self._NAME.fullmatch(name) or name in self._RESERVED or names.count(name) > 1:
                raise ValidationError(
                    f"{name!r} is taken, or is not made of lower-case letters and digits."
                )
        providers = []
        faults: dict[str, list[str]] = {}
        for name in names:
            prefix = f"PROVIDER_{name.upper()}_"
            try:
                providers.append(_read_provider(name, prefix, data))
            except ValidationError as error:
                messages = error.normalized_messages()  # type: ignore[no-untyped-call]
                faults |= {prefix + variable: told for variable, told in messages.items()}
        if faults:
            raise ValidationError(faults)
        return tuple(providers)


def _read_provider(
    name: str, prefix: str, environ: Mapping[str, str]
) -> OidcSettings | GitHubSettings:
    """Return the provider that the variables with the prefix describe; raise ValidationError."""
    own = {
        variable.removeprefix(prefix): value
        for variable, value in environ.items()
        if variable.startswith(prefix)
    }
    match own.get("KIND", "github" if name == "github" else "oidc"):
        case "oidc":
            return OidcSettings(name=name, **_OidcSchema().load({"TITLE": name.title(), **own}))
        case "github":
            return GitHubSettings(name=name, **_GitHubSchema().load(own))
        case _:
            raise ValidationError({"KIND": ["must be one of oidc, github."]})


def _number(default: int | None, low: int, high: int, name: str) -> fields.Integer:
    return fields.Integer(
        data_key=name,
        load_default=default,
        validate=validate.Range(low, high, error="must lie between {min} and {max}."),
        error_messages={"invalid": "must be a whole number."},
    )


def _required(name: str) -> dict[str, Any]:
    return {"data_key": name, "required": True, "error_messages": {"required": "is not set."}}


def _one_of(kind: Any, default: str, name: str) -> fields.String:
    return fields.String(
        data_key=name,
        load_default=default,
        validate=validate.OneOf(get_args(kind), error="must be one of {choices}."),
    )


class _ProviderSchema(Schema):
    """One field a variable, without its prefix PROVIDER_<NAME>_."""

    class Meta:
        unknown = EXCLUDE

    client_id = fields.String(**_required("CLIENT_ID"))
    client_secret = fields.String(data_key="CLIENT_SECRET", load_default=None)


class _OidcSchema(_ProviderSchema):
    issuer = _ProviderUrl(**_required("ISSUER"))
    title = fields.String(data_key="TITLE")
    scopes = fields.String(
        data_key="SCOPES",
        load_default="openid email",
        validate=validate.Regexp(r"(.* )?openid( .*)?\Z", error="must have the word openid."),
    )


class _GitHubSchema(_ProviderSchema):
    title = fields.String(data_key="TITLE", load_default="GitHub")
    scopes = fields.String(data_key="SCOPES", load_default="user:email")
    authorize_url = _ProviderUrl(
        data_key="AUTHORIZE_URL", load_default="https://github.com/login/oauth/authorize"
    )
    token_url = _ProviderUrl(
        data_key="TOKEN_URL", load_default="https://github.com/login/oauth/access_token"
    )
    api_url = _ProviderUrl(data_key="API_URL", load_default="https://api.github.com")


class SettingsSchema(Schema):
    """One field a variable."""

    class Meta:
        unknown = EXCLUDE  # the environment holds much that is not ours

    host = fields.String(data_key="HOST", load_default="127.0.0.1")
    port = _number(8080, 1, 65535, "PORT")
    metrics_port = _number(None, 1, 65535, "METRICS_PORT")
    workers = _number(None, 1, 256, "WORKERS")
    shutdown_delay = _number(0, 0, 300, "SHUTDOWN_DELAY_SECONDS")
    public_url = _PublicUrl("http", "https", data_key="PUBLIC_URL", load_default=None)
    service_name = fields.String(data_key="SERVICE_NAME", load_default="referrals")
    database_url = _DatabaseUrl(*PRIMARY_KINDS, **_required("DATABASE_URL"))
    database_replica_url = _DatabaseUrl(
        *STANDBY_KINDS, data_key="DATABASE_REPLICA_URL", load_default=None
    )
    database_pool_size = _number(10, 1, 1000, "DATABASE_POOL_SIZE")
    database_prepared_statements = _one_of(OnOff, "on", "DATABASE_PREPARED_STATEMENTS")
    redis_url = _RedisUrl(**_required("REDIS_URL"))
    log_level = _one_of(LogLevel, "info", "LOG_LEVEL")
    log_format = _one_of(LogFormat, "auto", "LOG_FORMAT")
    access_token_ttl = _number(600, 10, 86_400, "ACCESS_TOKEN_TTL_SECONDS")
    refresh_token_ttl = _number(2_592_000, 60, 31_536_000, "REFRESH_TOKEN_TTL_SECONDS")
    password_min_length = _number(8, 8, 64, "PASSWORD_MIN_LENGTH")
    argon2_memory_kib = _number(19_456, 8, 4_194_304, "ARGON2_MEMORY_KIB")
    argon2_passes = _number(2, 1, 100, "ARGON2_PASSES")
    argon2_lanes = _number(1, 1, 16, "ARGON2_LANES")
    hashing_threads = _number(None, 1, 64, "HASHING_THREADS")
    hashing_queue = _number(64, 1, 10_000, "HASHING_QUEUE")
    cors_origins = _Origins(data_key="CORS_ORIGINS", load_default=frozenset())
    trusted_proxies = _Networks(data_key="TRUSTED_PROXIES", load_default=())
    rate_limit_register = _RateLimit(data_key="RATE_LIMIT_REGISTER", load_default=RateLimit(20, 60))
    rate_limit_login = _RateLimit(data_key="RATE_LIMIT_LOGIN", load_default=RateLimit(10, 60))
    rate_limit_lookup = _RateLimit(data_key="RATE_LIMIT_LOOKUP", load_default=RateLimit(120, 60))
    rate_limit_write = _RateLimit(data_key="RATE_LIMIT_WRITE", load_default=RateLimit(60, 60))
    signing_keys = _SigningKeys(**_required("SIGNING_KEYS"))
    refresh_token_keys = _Secrets(**_required("REFRESH_TOKEN_KEYS"))
    hash_key = _Secrets(**_required("HASH_KEY"))
    providers = _Providers(data_key="PROVIDERS", load_default=())
    rate_limit_mail = _RateLimit(data_key="RATE_LIMIT_MAIL", load_default=RateLimit(10, 60))
    rate_limit_verification = _RateLimit(
        data_key="RATE_LIMIT_VERIFICATION", load_default=RateLimit(30, 60)
    )
    serve_jobs = _one_of(OnOff, "on", "SERVE_JOBS")
    hunter_api_key = _Header(data_key="HUNTER_API_KEY", load_default=None)
    hunter_url = _ProviderUrl(data_key="HUNTER_URL", load_default=HUNTER_URL)
    enrichment_provider = _one_of(EnrichmentProvider, "hunter", "ENRICHMENT_PROVIDER")
    enrichment_api_key = _Header(data_key="ENRICHMENT_API_KEY", load_default=None)
    enrichment_url = _ProviderUrl(data_key="ENRICHMENT_URL", load_default=None)
    smtp = _SmtpUrl(data_key="SMTP_URL", load_default=None)
    mail_sender = _Address(data_key="MAIL_FROM", load_default=None)
    app_url = _AppUrl("http", "https", data_key="APP_URL", load_default=None)
    email_confirmation = _one_of(EmailConfirmation, "off", "EMAIL_CONFIRMATION")
    email_domains_allowed = _Domains(data_key="EMAIL_DOMAINS_ALLOWED", load_default=frozenset())

    def __init__(self, mailbox: Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._mailbox = mailbox

    @validates_schema(skip_on_field_errors=False)
    def _lanes_have_memory(self, data: dict[str, Any], **_: Any) -> None:
        memory, lanes = data.get("argon2_memory_kib"), data.get("argon2_lanes")
        if memory and lanes and memory < 8 * lanes:
            raise ValidationError(
                "must be 8 for each of ARGON2_LANES, or more.", "ARGON2_MEMORY_KIB"
            )

    @validates_schema(skip_on_field_errors=False)
    def _ports_differ(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("metrics_port") and data["metrics_port"] == data.get("port"):
            raise ValidationError("must differ from PORT.", "METRICS_PORT")

    @validates_schema(skip_on_field_errors=False)
    def _mails_have_a_server_and_a_sender(self, data: dict[str, Any], **_: Any) -> None:
        # A faulty variable is not in `data`, one that is not set is there as None.
        faults = {}
        if data.get("smtp") and data.get("mail_sender", "faulty") is None:
            faults["MAIL_FROM"] = ["is not set; mails need a sender."]
        required = data.get("email_confirmation") == "required"
        if required and self._mailbox is None and data.get("smtp", "faulty") is None:
            faults["EMAIL_CONFIRMATION"] = ["needs a mail server: set SMTP_URL."]
        if faults:
            raise ValidationError(faults)


def read_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the env file (`ENV_FILE`, by default `.env`) under `environ`'s.

    A variable that is set to nothing counts as not set. Raises SettingsError where the file that
    `ENV_FILE` names cannot be read: what it holds would silently be other than meant.
    """
    named = environ.get("ENV_FILE")
    if named and (not Path(named).exists() or Path(named).is_dir()):
        raise SettingsError(f"ENV_FILE names no file: there is none at {named}.")
    try:
        file = dotenv_values(named or ".env", interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingsError(f"ENV_FILE cannot be read: {reason}: {named or '.env'}.") from error
    return {name: value for source in (file, environ) for name, value in source.items() if value}


def risks_of(settings: Settings) -> list[str]:
    """Return what is set as no public service should have it: one sentence each, for the log.

    Told and not refused, because tests, and services within a private network, have their reasons.
    """
    risks = []
    app_url = settings.mail and settings.mail.app_url
    for name, url in (("PUBLIC_URL", settings.public_url), ("APP_URL", app_url or "")):
        parts = urlsplit(url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            risks.append(
                f"{name} begins with http://: passwords and tokens can be read on the way."
            )
    cost = settings.argon2
    if not any(
        cost.memory_kib >= memory and cost.passes >= passes for memory, passes in OWASP_ARGON2
    ):
        risks.append(
            "ARGON2_MEMORY_KIB and ARGON2_PASSES are below OWASP's minimum, 19456 and 2: whoever "
            "steals the database finds passwords sooner."
        )
    delivery = settings.mail.delivery if settings.mail else None
    if isinstance(delivery, SmtpSettings) and not (
        delivery.implicit_tls or delivery.user or is_loopback(delivery.host)
    ):
        risks.append(
            "SMTP_URL is smtp:// without a password: where the mail server does not offer "
            "STARTTLS, the tokens in mails can be read on the way."
        )
    return risks


def is_loopback(host: str) -> bool:
    """Whether the host of a URL is this machine, by name or by address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")


def read_settings(environ: Mapping[str, str], mailbox: Path | None = None) -> Settings:
    """Return the settings that `environ` gives; raise SettingsError naming every bad variable.

    Without a mail server, mails go into the folder `mailbox` if there is one.
    """
    values = _load(environ, mailbox=mailbox)
    workers = values.pop("workers") or available_cores()
    mail = _read_mail(values, mailbox)
    public_url = values.pop("public_url") or f"http://localhost:{values['port']}"
    return Settings(
        workers=workers,
        public_url=public_url,
        hashing_threads=values.pop("hashing_threads") or max(1, available_cores() // workers),
        hash_key=values.pop("hash_key")[0],
        shutdown_delay=timedelta(seconds=values.pop("shutdown_delay")),
        access_token_ttl=timedelta(seconds=values.pop("access_token_ttl")),
        refresh_token_ttl=timedelta(seconds=values.pop("refresh_token_ttl")),
        argon2=Argon2(
            memory_kib=values.pop("argon2_memory_kib"),
            passes=values.pop("argon2_passes"),
            lanes=values.pop("argon2_lanes"),
        ),
        database_prepared_statements=values.pop("database_prepared_statements") == "on",
        serve_jobs=values.pop("serve_jobs") == "on",
        hunter=_read_hunter(values),
        enrichment=_read_enrichment(values),
        mail=mail,
        confirmation_required=values.pop("email_confirmation") == "required",
        **values,
    )


def _read_hunter(values: dict[str, Any]) -> HunterSettings | None:
    api_key, url = values.pop("hunter_api_key"), values.pop("hunter_url")
    return api_key and HunterSettings(api_key=api_key, url=url.rstrip("/"))


def _read_enrichment(values: dict[str, Any]) -> EnrichmentSettings | None:
    provider, api_key, url = (
        values.pop(f"enrichment_{name}") for name in ("provider", "api_key", "url")
    )
    url = url or (HUNTER_URL if provider == "hunter" else CLEARBIT_URL)
    return api_key and EnrichmentSettings(provider=provider, api_key=api_key, url=url.rstrip("/"))


def _read_mail(values: dict[str, Any], mailbox: Path | None) -> MailSettings | None:
    smtp, sender, app_url = (values.pop(name) for name in ("smtp", "mail_sender", "app_url"))
    delivery: SmtpSettings | Path | None = smtp or mailbox
    if delivery is None:
        return None
    return MailSettings(
        sender=sender or "referrals@localhost.test",
        app_url=app_url,
        delivery=delivery,
    )


def read_database_url(environ: Mapping[str, str]) -> str:
    """Return DATABASE_URL, which is all that a migration needs; raise SettingsError."""
    url: str = _load(environ, "database_url")["database_url"]
    return url


def read_database(environ: Mapping[str, str]) -> tuple[str, bool]:
    """Return DATABASE_URL, and whether statements may be prepared; raise SettingsError."""
    values = _load(environ, "database_url", "database_prepared_statements")
    return values["database_url"], values["database_prepared_statements"] == "on"


def read_servers(environ: Mapping[str, str]) -> tuple[str, bool, str | None]:
    """Return what `read_database` does, and REDIS_URL if it is set; raise SettingsError."""
    redis = ("redis_url",) if environ.get("REDIS_URL") else ()
    values = _load(environ, "database_url", "database_prepared_statements", *redis)
    return (
        values["database_url"],
        values["database_prepared_statements"] == "on",
        values.get("redis_url"),
    )


def read_signing_keys(environ: Mapping[str, str]) -> tuple[SigningKeys, timedelta]:
    """Return the signing keys and the life of what they sign; raise SettingsError."""
    values = _load(environ, "signing_keys", "access_token_ttl")
    return values["signing_keys"], timedelta(seconds=values["access_token_ttl"])


def _load(environ: Mapping[str, str], *only: str, mailbox: Path | None = None) -> dict[str, Any]:
    try:
        values: dict[str, Any] = SettingsSchema(mailbox, only=only or None).load(environ)
    except ValidationError as error:
        messages: dict[str, Any] = error.normalized_messages()  # type: ignore[no-untyped-call]
        if isinstance(messages.get("PROVIDERS"), dict):  # told under the variables' own names
            messages |= messages.pop("PROVIDERS")
        raise SettingsError(
            "\n".join(f"{name} {told}" for name in sorted(messages) for told in messages[name])
        ) from error
    return values


def available_cores() -> int:
    """Return how many cores this process may use: its cgroup's quota, then its affinity."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limit = int(quota) // int(period)
    except (OSError, ValueError):  # no cgroup, or no quota ("max")
        limit = affinity or 1
    return max(1, min(affinity or 1, limit))
