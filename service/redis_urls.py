"""What REDIS_URL may name: one server, or a cluster.

redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// and unix:// are read by redis-py.
redis+cluster://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…] names any nodes of the cluster.
rediss+cluster:// is the same with TLS everywhere.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args
from urllib.parse import SplitResult, urlsplit

Kind = Literal["server", "cluster"]
_HOSTS: Final = "must name each host with its port, HOST:PORT,HOST:PORT."


@dataclass(frozen=True)
class RedisUrl:
    """What is to be connected to."""

    kind: Kind
    named: tuple[str, ...]
    """A URL that redis-py can read for each server that the URL names."""
    parts: SplitResult

    def to(self, host: str, port: int) -> str:
        """Return the URL of a server that one of those named has told of."""
        return _to(self.parts, host, port)


def read_redis_url(url: str) -> RedisUrl:
    """Take REDIS_URL apart; raise ValueError, which says in a sentence what it must be."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("must have both brackets around an address, and only there.") from None
    scheme, _, kind = parts.scheme.partition("+")
    if kind not in get_args(Kind):
        return RedisUrl("server", (url,), parts)
    parts = parts._replace(scheme=scheme)
    addresses = [_address(host) for host in parts.netloc.rpartition("@")[2].split(",")]
    if parts.path.strip("/"):
        raise ValueError("must have nothing behind the hosts: a cluster has one database.")
    return RedisUrl("cluster", tuple(_to(parts, *each) for each in addresses), parts)


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
