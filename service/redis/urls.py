"""What REDIS_URL may name: one server, or the primary that sentinels know.

redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// and unix:// are read by redis-py.
redis+sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]/SERVICE[/DB] names all sentinels. User and
password are those of the servers; for sentinels that need them too, add sentinel_username and
sentinel_password to the query. rediss+sentinel:// is the same with TLS everywhere.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

_ANYTHING: Final = (".*", "")
_KNOWN: Final = {
    "db": (r"\d+", "a number"),
    "username": _ANYTHING,
    "password": _ANYTHING,
    "protocol": ("2", "2"),
}
_KNOWN_WITH_TLS: Final = {
    "ssl_ca_certs": _ANYTHING,
    "ssl_ca_data": _ANYTHING,
    "ssl_ca_path": _ANYTHING,
    "ssl_cert_reqs": ("none|optional|required", "none, optional or required"),
    "ssl_certfile": _ANYTHING,
    "ssl_check_hostname": ("true|false", "true or false"),
    "ssl_ciphers": _ANYTHING,
    "ssl_keyfile": _ANYTHING,
    "ssl_password": _ANYTHING,
}
"""The parameters of redis-py that are supported, with their values as a pattern and in words."""
_FILES: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})

Kind = Literal["server", "sentinel"]
_HOSTS: Final = "must name each host with its port, HOST:PORT,HOST:PORT."
_SENTINELS_OWN: Final = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True)
class RedisUrl:
    """Where to connect."""

    kind: Kind
    named: tuple[str, ...]
    """A URL that redis-py can read for each host that the URL names."""
    service: str
    """What the sentinels call the primary."""
    parts: SplitResult

    def to(self, host: str, port: int) -> str:
        """Return the URL of a server that a sentinel has named."""
        return _to(self.parts, host, port)


def read_redis_url(url: str) -> RedisUrl:
    """Parse REDIS_URL; raise ValueError with a sentence that says what it must be."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("must have both brackets around an address, and only there.") from None
    scheme, _, kind = parts.scheme.partition("+")
    if kind == "cluster":
        raise ValueError("must not name a cluster: use one server, or a primary with sentinels.")
    if kind != "sentinel":
        return RedisUrl("server", (url,), "", parts)
    parts = parts._replace(scheme=scheme)
    addresses = [_address(host) for host in parts.netloc.rpartition("@")[2].split(",")]
    path = re.fullmatch(r"/([^/]+)(/\d*)?", parts.path)
    if path is None:
        raise ValueError("must end with the name that the sentinels have for the primary.")
    query = dict(parse_qsl(parts.query))
    user, password = (quote(query.pop(name, ""), safe="") for name in _SENTINELS_OWN)
    parts = parts._replace(path=path[2] or "", query=urlencode(query))
    sentinel = parts._replace(netloc=f"{user}:{password}@" if password else "", path="")
    return RedisUrl("sentinel", tuple(_to(sentinel, *each) for each in addresses), path[1], parts)


def faults_of_parameters(url: str) -> Iterator[str]:
    """Yield a sentence for each parameter of a server's URL that is not supported."""
    parts = urlsplit(url)
    known = _KNOWN if parts.scheme != "rediss" else _KNOWN | _KNOWN_WITH_TLS
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            # Anything else may be a part of the password.
            named = f" {name}" if re.fullmatch(r"[a-z_]{1,40}", name) and "@" not in value else ""
            yield f"has a parameter{named} that this service does not know: leave it out."
        elif not re.fullmatch(known[name][0], value):
            yield f"{name} must be {known[name][1]}, or left out."
        elif name in _FILES and not os.access(value, os.R_OK):
            yield f"{name} must be a file that this service may read, and {value} is not."
    if parts.scheme in {"redis", "rediss"} and not re.fullmatch(r"/?\d*", parts.path):
        yield "must have the number of a database after the host, or nothing."


def _to(parts: SplitResult, host: str, port: int) -> str:
    user, at, _ = parts.netloc.rpartition("@")
    host = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{user}{at}{host}:{port}").geturl()


def _address(host: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        name, port = None, None
    if not name or not port or parts.path:
        raise ValueError(_HOSTS)
    return name, port
