"""What the text of a variable may mean: a function for each kind of value.

Each returns the value, or raises ValidationError with a phrase that follows the variable's name.
No phrase repeats a value that may be a secret or hold one.
"""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

import idna
from jwt.exceptions import PyJWTError
from marshmallow import ValidationError

from service.domain.identities import is_safe_url
from service.domain.rate_limits import RateLimit
from service.postgresql.urls import DatabaseUrlError, parse_database_url
from service.providers.settings import SmtpSettings
from service.redis.urls import faults_of_parameters, read_redis_url
from service.security.signing_keys import SigningKey, SigningKeys

Word = TypeVar("Word", bound=str)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_PATH: Final = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")
_RATE_LIMIT: Final = re.compile(r"([1-9]\d{0,8})/(second|minute|hour)")
_SECONDS_OF: Final = {"second": 1, "minute": 60, "hour": 3600}


def number(low: int, high: int) -> Callable[[str], int]:
    """Return the reader of a whole number from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValidationError("must be a whole number.") from None
        if not low <= value <= high:
            raise ValidationError(f"must be between {low} and {high}.")
        return value

    return read


def seconds(low: int, high: int) -> Callable[[str], timedelta]:
    return lambda text: timedelta(seconds=number(low, high)(text))


def days(low: int, high: int) -> Callable[[str], timedelta]:
    return lambda text: timedelta(days=number(low, high)(text))


def one_of(*words: Word) -> Callable[[str], Word]:
    """Return the reader of one of these words."""

    def read(text: str) -> Word:
        if text not in words:
            raise ValidationError(f"must be one of {', '.join(words)}.")
        return text

    return read


def on_off(text: str) -> bool:
    return one_of("on", "off")(text) == "on"


def rate_limit(text: str) -> RateLimit | None:
    """`N/second`, `N/minute`, `N/hour` or `off`."""
    if text == "off":
        return None
    if not (parts := _RATE_LIMIT.fullmatch(text)):
        raise ValidationError("must be N/second, N/minute, N/hour or off.")
    return RateLimit(int(parts[1]), _SECONDS_OF[parts[2]])


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def origins(text: str) -> frozenset[str]:
    """Web origins (RFC 6454) between commas, `https://*.example.com` for all subdomains, or `*`."""
    found, faults = set(), []
    for word in words(text):
        try:
            found.add("*" if word == "*" else _origin(word))
        except ValueError:
            faults.append(f"{word!r} is not an origin such as https://app.example.com.")
    if faults:
        raise ValidationError(faults)
    return frozenset(found)


def _origin(word: str) -> str:
    """Return the origin as browsers send it; raise ValueError where it is none."""
    parts = urlsplit(word)
    host, port = parts.hostname or "", parts.port
    nothing_else = parts.path in {"", "/"} and not (parts.query or parts.fragment)
    if parts.scheme not in _DEFAULT_PORTS or "@" in parts.netloc or not nothing_else:
        raise ValueError
    star, name = ("*.", host[2:]) if host.startswith("*.") else ("", host)
    if ":" in name:
        name = f"[{IPv6Address(name)}]"
    elif not name.isascii():
        name = idna.encode(name, uts46=True).decode()
    if not _HOST.fullmatch(name):
        raise ValueError
    shown = "" if port in {None, _DEFAULT_PORTS[parts.scheme]} else f":{port}"
    return f"{parts.scheme}://{star}{name}{shown}"


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(map(ip_network, words(text)))
    except ValueError as error:
        raise ValidationError(f"{error}.") from error


def domains(text: str) -> frozenset[str]:
    found = [word.lower().removeprefix(".") for word in words(text)]
    if not all(map(_HOST.fullmatch, found)):
        raise ValidationError("must be domains separated by commas, such as local,lan.")
    return frozenset(found)


def secrets(text: str) -> tuple[bytes, ...]:
    """Secrets between commas, of 32 characters or more; the first is used for what is new."""
    found = words(text)
    if not found or min(map(len, found)) < 32:
        raise ValidationError("must be 32 characters or more.")
    try:
        return tuple(word.encode() for word in found)
    except UnicodeEncodeError as error:
        raise ValidationError("must be UTF-8.") from error


def signing_keys(text: str) -> SigningKeys:
    """A JWK set (RFC 7517) of private P-256 keys."""
    try:
        return SigningKeys([SigningKey.from_jwk(jwk) for jwk in json.loads(text)["keys"]])
    except (ValueError, KeyError, TypeError, RecursionError, PyJWTError) as error:
        raise ValidationError(
            "must be a JWK set with a private P-256 key; "
            "`python -m service keys generate` makes one."
        ) from error


def header(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValidationError("must be printable ASCII without spaces.")
    return text


def public_url(text: str) -> str:
    """Where clients reach the service: an origin, and the path that a proxy takes off."""
    parts, url = _url(text, "http", "https"), text.rstrip("/")
    path = parts.path.rstrip("/")
    if "@" in parts.netloc or url != f"{parts.scheme}://{parts.netloc}{path}":
        raise ValidationError("must have no query and no user.")
    if not _PATH.fullmatch(path):
        raise ValidationError("must have a path of plain words, such as /referrals, or none.")
    return url


def app_url(text: str) -> str:
    """Where the front end begins: paths are added to it, and a `#` with a token."""
    _url(text, "http", "https")
    if set("?#@ ") & set(text) or not text.isprintable():
        raise ValidationError("must have no query, no fragment and no user.")
    return text.rstrip("/")


def provider_url(text: str) -> str:
    """An address of a provider: https, or http on loopback, with nothing after its path."""
    if not is_safe_url(text) or set("?#@") & set(text) or not text.isprintable():
        raise ValidationError("must be a URL that begins with https://, without ?, # and @.")
    return text


def database_url(*kinds: str) -> Callable[[str], str]:
    """Return the reader of a PostgreSQL URL whose several hosts, if any, are of one of `kinds`.

    Without target_session_attrs a connection would be to any of the hosts: writes to a standby.
    """

    def read(text: str) -> str:
        try:
            url = parse_database_url(text)
        except DatabaseUrlError as error:
            raise ValidationError([*error.faults]) from error
        if len(url.hosts) > 1 and url.kind_wanted not in kinds:
            raise ValidationError(f"has several hosts: add target_session_attrs={kinds[0]}.")
        return text

    return read


def redis_url(text: str) -> str:
    """A URL of one server, or of the sentinels of a primary."""
    try:
        urls = read_redis_url(text).named
    except ValueError as error:
        raise ValidationError(str(error)) from error
    for url in urls:
        _url(url, "redis", "rediss", "unix")
    if faults := [fault for url in urls for fault in faults_of_parameters(url)]:
        raise ValidationError([*dict.fromkeys(faults)])
    return text


def smtp_url(text: str) -> SmtpSettings:
    """`smtp://USER:PASSWORD@HOST:PORT` or `smtps://…`; user and password percent-encoded."""
    parts = _url(text, "smtp", "smtps")
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValidationError("must have a host, and nothing after the port.")
    if bool(parts.username) != bool(parts.password):
        raise ValidationError("must have both a user and a password, or neither.")
    implicit_tls = parts.scheme == "smtps"
    return SmtpSettings(
        host=parts.hostname,
        port=parts.port or (465 if implicit_tls else 587),
        implicit_tls=implicit_tls,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def _url(text: str, *schemes: str) -> SplitResult:
    """Return the parts of a URL of one of these schemes."""
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError where it is not a number
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    has_host = bool(parts.hostname) or parts.scheme not in _DEFAULT_PORTS
    slashes = text[len(parts.scheme) :].startswith("://")
    if parts.scheme not in schemes or not slashes or not has_host:
        beginnings = " or ".join(f"{scheme}://" for scheme in schemes)
        raise ValidationError(f"must be a URL that begins with {beginnings}.")
    return parts
