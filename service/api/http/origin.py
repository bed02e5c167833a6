"""Where the current request came from, for security events."""

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
    """Return where the current request came from; an empty Origin outside of a request."""
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
    """Return the /24 network of an IPv4 address; an IPv6 client is given as its /64 already."""
    try:
        return address if "/" in address else str(ip_network(f"{address}/24", strict=False))
    except ValueError:
        return None  # a connection without an address, as through a UNIX socket
