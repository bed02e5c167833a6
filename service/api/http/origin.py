"""Where the present request came from, for security events."""

from contextvars import ContextVar
from ipaddress import ip_network
from typing import Final

from aiohttp import web

from service.api.http.app_keys import CONTEXT
from service.api.http.client_address import client_address
from service.api.http.requests import header_text
from service.domain.security_events import Origin
from service.domain.sessions import LONGEST_USER_AGENT

CURRENT_REQUEST: Final[ContextVar[web.Request | None]] = ContextVar("request", default=None)


def current_origin() -> Origin:
    """Return where the present request came from; an empty Origin outside of one."""
    request = CURRENT_REQUEST.get()
    if request is None:
        return Origin()
    user_agent = header_text(request, "User-Agent")
    return Origin(
        request_id=request[CONTEXT].request_id,
        address=_network_of(client_address(request)),
        user_agent=user_agent and user_agent[:LONGEST_USER_AGENT],
    )


def _network_of(address: str) -> str | None:
    """Return the network of a client's address: the /24 of IPv4; of IPv6 it is the /64 already."""
    try:
        return address if "/" in address else str(ip_network(f"{address}/24", strict=False))
    except ValueError:
        return None  # a connection without an address, as through a UNIX socket
