"""The sockets that the workers listen on.

Each worker has a listening socket of its own for the port (SO_REUSEPORT). The supervisor opens all
of them and keeps them open, so that a connection that waits in a dead worker's queue is answered
by the worker that takes its place.
"""

import socket
import sys
from typing import Any, Final, NamedTuple

from service.domain.operators import OperatorError
from service.settings.settings import Settings

UNREAD_SECONDS: Final = 30.0
"""How long an answer may stay unread or unacknowledged before the client counts as gone."""
BACKLOG: Final = 256
"""How many connections may wait to be accepted. With more, the last ones would be accepted after
their clients have left, and the work for them be wasted."""


class _Place(NamedTuple):
    """An address to listen on, and which word of HOST stands for it."""

    host: str
    family: int
    address: Any

    @property
    def is_everywhere(self) -> bool:
        return self.address[0] in {"0.0.0.0", "::"}  # noqa: S104  # compared, not bound

    @property
    def is_of_this_machine(self) -> bool:
        address, _, *rest = self.address
        try:
            with socket.socket(self.family, socket.SOCK_STREAM) as probe:
                probe.bind((address, 0, *rest))
        except OSError:
            return False
        return True


class Listeners(NamedTuple):
    """Where one worker listens; `metrics` are of METRICS_PORT."""

    requests: list[socket.socket]
    metrics: list[socket.socket]

    @property
    def addresses(self) -> str:
        """Where requests are taken, as people write it."""
        names = [each.getsockname()[:2] for each in self.requests]
        return ", ".join(f"{_written(host)}:{port}" for host, port in names)

    def close(self) -> None:
        for listener in [*self.requests, *self.metrics]:
            listener.close()


def listeners_of(settings: Settings) -> list[Listeners]:
    """Return what each worker listens on; raise OperatorError."""
    requests = listen(settings.host, settings.port, settings.workers)
    port = settings.metrics_port
    metrics = listen(settings.host, port, settings.workers) if port else [[] for _ in requests]
    return [*map(Listeners, requests, metrics)]


def listen(hosts: str, port: int, workers: int) -> list[list[socket.socket]]:
    """Return for each worker a listening socket at each address of `hosts`, between commas.

    Raises OperatorError. `::` includes IPv4, unless an IPv4 address is listed too.
    """
    shared = workers > 1
    opened: list[list[socket.socket]] = [[] for _ in range(workers)]
    places = _places(hosts, port)
    only_ipv6 = any(place.family == socket.AF_INET for place in places)
    for place in places:
        dual = place.address[0] == "::" and not only_ipv6 and socket.has_dualstack_ipv6()
        try:
            if shared:
                # With SO_REUSEPORT another service on the port would go unnoticed, and get half
                # of the connections.
                _open(place, dual=dual, shared=False).close()
            for opened_here in opened:
                opened_here.append(_open(place, dual=dual, shared=shared))
        except OSError as error:
            raise _not_listening(place.host, port, error) from error
    return opened


def _places(hosts: str, port: int) -> list[_Place]:
    """Return where to listen, nowhere twice; raise OperatorError where a host does not resolve."""
    found: dict[Any, _Place] = {}
    for host in [word.strip().strip("[]") for word in hosts.split(",") if word.strip()]:
        try:
            resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _not_listening(host, port, error) from error
        named = [_Place(host, family, address) for family, *_, address in resolved]
        # A name may have an address that this machine lacks: localhost where IPv6 is off.
        here = [place for place in named if place.is_of_this_machine]
        found |= {place.address: place for place in here or named}
    if not found:
        raise OperatorError("HOST names no address to listen on.")
    # "Everywhere" includes all other addresses of its family.
    all_of = {place.family for place in found.values() if place.is_everywhere}
    return [place for place in found.values() if place.is_everywhere or place.family not in all_of]


def _open(place: _Place, *, dual: bool, shared: bool) -> socket.socket:
    family, address = place.family, place.address
    listener = socket.create_server(
        address, family=family, backlog=BACKLOG, reuse_port=shared, dualstack_ipv6=dual
    )
    if sys.platform == "linux":  # connections inherit it
        milliseconds = int(UNREAD_SECONDS * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


def _not_listening(host: str, port: int, error: Exception) -> OperatorError:
    # Python adds the address to the system's words.
    reason = str(getattr(error, "strerror", None) or "not a host name").partition(" (while")[0]
    return OperatorError(f"Cannot listen on {_written(host)}:{port}: {reason}.")


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host
