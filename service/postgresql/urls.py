"""DATABASE_URL: libpq's parameters, honoured by both drivers or refused at start.

The service connects with asyncpg, the migrations with libpq (psycopg), and each knows parameters
that the other does not. So the URL is parsed here, and each driver gets what it understands. Some
parameters of other clients, which hosting providers hand out, are honoured, too.
"""

import os
import re
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlencode

PRIMARY_KINDS: Final = ("read-write", "primary")
STANDBY_KINDS: Final = ("standby", "read-only")
"""Values of libpq's `target_session_attrs`."""
_SCHEME: Final = "must be a URL that begins with postgresql://."
_FORM: Final = (
    "must be a URL of the form postgresql://USER:PASSWORD@HOST:5432/DATABASE; "
    "in a password, write @ : / ? and % as %40 %3A %2F %3F and %25."
)
_URL: Final = re.compile(
    r"(?i:postgres(?:ql)?)://(?P<authority>[^/?]*)(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_HOST: Final = re.compile(r"(?:\[(?P<bracketed>[^][]+)\]|(?P<name>[^][:]*))(?::(?P<port>\d+))?")
_TLS_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "target_session_attrs": ("any", *PRIMARY_KINDS, *STANDBY_KINDS, "prefer-standby"),
    "keepalives": ("1", "0"),
    # What asyncpg does anyway.
    "channel_binding": ("prefer", "disable"),
    "client_encoding": ("UTF8", "utf8", "UTF-8", "utf-8"),
    "gssencmode": ("prefer", "disable"),
    "load_balance_hosts": ("disable",),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
    # Other clients': JDBC, Prisma, node-postgres.
    "ssl": ("true",),
    "pgbouncer": ("true", "false"),
    "uselibpqcompat": ("true",),
}
_SOCKET_OPTIONS: Final = {
    "keepalives": (socket.SOL_SOCKET, "SO_KEEPALIVE"),
    "keepalives_idle": (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
    "keepalives_interval": (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
    "keepalives_count": (socket.IPPROTO_TCP, "TCP_KEEPCNT"),
    "tcp_user_timeout": (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
}
_NUMBERS: Final = {"connect_timeout", "connection_limit", *_SOCKET_OPTIONS} - {"keepalives"}
_FILES: Final = ("passfile", "sslcert", "sslcrl", "sslkey", "sslrootcert")
_TEXTS: Final = ("application_name", "fallback_application_name", "options", "sslpassword")
_PLACES: Final = ("host", "port", "user", "password", "dbname", "schema")
_KNOWN: Final = frozenset({*_CHOICES, *_NUMBERS, *_FILES, *_TEXTS, *_PLACES})
_OF_OTHERS: Final = ("connection_limit", "pgbouncer", "schema", "ssl", "uselibpqcompat")
"""Unknown to libpq, or not in that form."""
_IN_DSN: Final = (
    "passfile",
    "sslcert",
    "sslcrl",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "target_session_attrs",
)
"""What asyncpg takes from a URL, but not, or differently, as an argument."""

_ADVICE: Final = {
    ("sslmode", "no-verify"): "sslmode=no-verify is not PostgreSQL's: write sslmode=require.",
    ("channel_binding", "require"): (
        "channel_binding=require cannot be met: leave it out, "
        "and let sslmode=verify-full verify the server."
    ),
    ("gssencmode", "require"): "gssencmode=require cannot be met: use TLS (sslmode) instead.",
}
_CERTIFICATES: Final = (
    ssl.get_default_verify_paths().cafile,
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
"""Where systems keep their trusted certificates."""


class DatabaseUrlError(ValueError):
    """The URL cannot be used: `faults` has a sentence for each reason, none with a secret."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__(" ".join(self.faults))


@dataclass(frozen=True, slots=True)
class Host:
    """Where a server listens; None is the drivers' default."""

    name: str | None
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseUrl:
    """A parsed URL."""

    hosts: tuple[Host, ...]
    user: str | None
    password: str | None = field(repr=False)
    database: str | None
    parameters: Mapping[str, str] = field(repr=False)
    """Those known to libpq, by its names."""
    connection_limit: int | None
    """The most connections that a process may open."""
    prepared_statements: bool
    """False behind a pooler that mixes them up."""

    @property
    def kind_wanted(self) -> str:
        """The kind of server to connect to, as in `target_session_attrs`."""
        return self.parameters.get("target_session_attrs", "any")

    @property
    def connect_seconds(self) -> float:
        """How long connecting may take."""
        seconds = int(self.parameters.get("connect_timeout", 0))
        return float(seconds) if seconds > 0 else float("inf")

    def for_asyncpg(self, host: Host) -> dict[str, Any]:
        """Return asyncpg's arguments for the host, without server settings."""
        given = {name: self.parameters[name] for name in _IN_DSN if name in self.parameters}
        return {
            "dsn": f"postgresql://?{urlencode(given)}" if given else "postgresql://",
            "host": host.name,
            "port": host.port,
            "user": self.user,
            "password": self.password,
            "database": self.database,
        }

    def server_settings(self, application_name: str) -> dict[str, str]:
        """Return the settings with which a session begins."""
        known = self.parameters
        name = known.get("application_name") or known.get("fallback_application_name")
        options = {"options": known["options"]} if "options" in known else {}
        return {"application_name": name or application_name, **options}

    def socket_options(self) -> Iterator[tuple[int, int, int]]:
        """Yield level, name and value of each socket option."""
        for parameter, (level, name) in _SOCKET_OPTIONS.items():
            value = int(self.parameters.get(parameter, 1 if parameter == "keepalives" else 0))
            # As in libpq, 0 is the system's default, and what the system lacks is left out.
            if hasattr(socket, name) and (value > 0 or parameter == "keepalives"):
                yield level, getattr(socket, name), value


def parse_database_url(url: str) -> DatabaseUrl:
    """Return the parsed URL; raise DatabaseUrlError with everything wrong with it."""
    parts = _URL.fullmatch(url)
    if parts is None:
        raise DatabaseUrlError([_SCHEME])
    try:
        user, password, places = _read_authority(parts["authority"])
        query = dict(_read_query(parts["query"] or ""))
        hosts = _read_hosts(query.get("host", places), query.get("port", ""))
        database = query.get("dbname", _decoded(parts["database"] or ""))
    except ValueError as error:
        raise DatabaseUrlError([_FORM]) from error
    if faults := [*_faults(query)]:
        raise DatabaseUrlError(faults)
    limit = query.get("connection_limit")
    return DatabaseUrl(
        hosts=hosts,
        user=query.get("user", user),
        password=query.get("password", password),
        database=database or None,
        parameters=_for_libpq(query),
        connection_limit=int(limit) if limit else None,
        prepared_statements=query.get("pgbouncer") != "true",
    )


def _read_authority(authority: str) -> tuple[str | None, str | None, str]:
    """Return user, password, and the hosts between commas."""
    credentials, _, hosts = authority.rpartition("@")
    user, _, password = credentials.partition(":")
    return _decoded(user) or None, _decoded(password) or None, _decoded(hosts)


def _read_query(query: str) -> Iterator[tuple[str, str]]:
    for parameter in filter(None, query.split("&")):
        name, is_one, value = parameter.partition("=")
        if not is_one:
            raise ValueError
        if value:
            yield _decoded(name), _decoded(value)  # as in libpq, + is no space


def _read_hosts(places: str, ports: str) -> tuple[Host, ...]:
    hosts = [_read_host(place) for place in places.split(",")]
    if not ports:
        return tuple(hosts)
    numbers = [_port(port) for port in ports.split(",")]
    if len(numbers) == 1:
        numbers *= len(hosts)
    return tuple(Host(host.name, port) for host, port in zip(hosts, numbers, strict=True))


def _read_host(place: str) -> Host:
    if place.startswith("/"):  # the folder of a socket
        return Host(place, None)
    if not (parts := _HOST.fullmatch(place)):
        raise ValueError
    name = parts["bracketed"] or parts["name"]
    return Host(name or None, _port(parts["port"]) if parts["port"] else None)


def _port(text: str) -> int:
    if not 1 <= (port := int(text)) <= 65_535:
        raise ValueError
    return port


def _decoded(text: str) -> str:
    """Undo percent-encoding; raise ValueError if that is impossible."""
    if re.search(r"%(?![0-9a-fA-F]{2})|%00", text):
        raise ValueError
    return unquote(text, errors="strict")


def _faults(query: Mapping[str, str]) -> Iterator[str]:
    for name, value in query.items():
        if name not in _KNOWN:
            # With an @ it is part of a password whose ? was not encoded.
            is_name = re.fullmatch(r"[A-Za-z_.]{1,40}", name) and "@" not in value
            named = f" {name}" if is_name else ""
            yield (
                f"has a parameter{named} that this service does not know: leave it out. "
                "A setting of the server is written as options=-c%20NAME=VALUE."
            )
        elif name in _CHOICES and value not in _CHOICES[name]:
            usual = f"{name} must be {' or '.join(_CHOICES[name])}, or left out."
            yield _ADVICE.get((name, value), usual)
        elif name in _NUMBERS and not re.fullmatch(r"\d{1,9}", value):
            yield f"{name} must be a whole number."
        elif name == "connection_limit" and not int(value):
            yield "connection_limit must be 1 or more."
        elif name in _FILES and not (_is_of_system({name: value}) or _is_readable(value)):
            yield f"{name} must be a file that this service may read, and {value} is not."
    yield from _faults_of_tls(query)


def _faults_of_tls(query: Mapping[str, str]) -> Iterator[str]:
    mode = query.get("sslmode", "verify-full" if _is_of_system(query) else "prefer")
    if _is_of_system(query):
        if mode != "verify-full":
            yield "sslrootcert=system needs sslmode=verify-full."
        if _certificates_of_system() is None:
            yield "sslrootcert=system finds no certificates here: name a file with them."
    elif mode.startswith("verify-") and not (
        "sslrootcert" in query
        or "PGSSLROOTCERT" in os.environ
        or Path("~/.postgresql/root.crt").expanduser().exists()
    ):
        yield f"sslmode={mode} needs sslrootcert: system, or a file with the certificates to trust."
    if query.get("sslnegotiation") == "direct" and mode in {"disable", "allow", "prefer"}:
        yield "sslnegotiation=direct needs sslmode=require, verify-ca or verify-full."


def _is_of_system(query: Mapping[str, str]) -> bool:
    return query.get("sslrootcert") == "system"


def _certificates_of_system() -> str | None:
    return next((file for file in _CERTIFICATES if file and _is_readable(file)), None)


def _is_readable(file: str) -> bool:
    return os.access(file, os.R_OK) and not Path(file).is_dir()


def _for_libpq(query: Mapping[str, str]) -> dict[str, str]:
    known = {
        name: value
        for name, value in query.items()
        if name not in _PLACES and name not in _OF_OTHERS
    }
    if "ssl" in query:
        known.setdefault("sslmode", "require")
    if _is_of_system(query):
        # The drivers would look in different places.
        known["sslrootcert"] = _certificates_of_system() or ""
        known["sslmode"] = "verify-full"
    if "schema" in query:
        path = '"{}"'.format(query["schema"].replace('"', '""'))
        escaped = re.sub(r"([\\\s])", r"\\\1", path)
        known["options"] = f"{known.get('options', '')} -csearch_path={escaped}".strip()
    return known
