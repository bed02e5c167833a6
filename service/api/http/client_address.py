"""The address that a request comes from, also through proxies."""

import functools
import itertools
import logging
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from aiohttp import web
from multidict import istr

log = logging.getLogger(__name__)

_Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]
_FORWARDED_FOR: Final = istr("X-Forwarded-For")
_WITH_PORT: Final = re.compile(r"\[([^]]+)\](?::\d+)?|([^:]+):\d+")
_LONGEST: Final = 100
"""No address is longer, nor is a header of a few proxies; a longer one is not remembered."""
_unreadable: Final = itertools.count()
"""Parts of X-Forwarded-For that this process could not read; the first one is logged."""


class ClientAddresses:
    """Finds them behind the proxies of these networks."""

    def __init__(self, trusted: _Networks) -> None:
        self.trusted = trusted
        # The networks are no part of the key: hashing one takes 0.7 µs, finding the rest 0.1.
        self.remembered = functools.lru_cache(10_000)(self.find)

    def find(self, peer: str, forwarded: str) -> str:
        """Return the address that an X-Forwarded-For of this peer stands for."""
        address = _parse(peer)
        parts = forwarded.split(",") if forwarded else []
        while parts and address and any(address in network for network in self.trusted):
            part = parts.pop()
            named = _parse(_without_port(part)) if len(part) < _LONGEST else None
            if named is None:  # anybody may have invented what is further left
                _warn_once(part)
                break
            address = named
        if isinstance(address, IPv6Address):
            return str(ip_network((address, 64), strict=False))
        return str(address)


CLIENT_ADDRESSES: Final = web.AppKey("CLIENT_ADDRESSES", ClientAddresses)


def client_address(request: web.Request) -> str:
    """Return the client's IP address; for IPv6 its /64, which is what one client has.

    `X-Forwarded-For` counts only as far as trusted proxies have written it: from the right, up
    to the first address that is not one of theirs, or to what is not an address.
    """
    addresses = request.app[CLIENT_ADDRESSES]
    peer = request.remote or ""
    if not addresses.trusted:
        return addresses.remembered(peer, "")
    forwarded = ",".join(request.headers.getall(_FORWARDED_FOR, ()))
    find = addresses.remembered if len(forwarded) <= _LONGEST else addresses.find
    return find(peer, forwarded)


def is_loopback(address: str) -> bool:
    """Whether the text is an IP address of this machine."""
    parsed = _parse(address)
    return parsed is not None and parsed.is_loopback


def _without_port(text: str) -> str:
    """Return the address in what a proxy has written: some add a port, brackets or quotes."""
    text = text.strip(' \t"')
    found = _WITH_PORT.fullmatch(text)
    return found[1] or found[2] if found else text


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.strip())
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _warn_once(part: str) -> None:
    if next(_unreadable) == 0:
        log.warning(
            "A trusted proxy sent an X-Forwarded-For that cannot be read (%.100r): "
            "in that case, the proxy's own address counts as the client's.",
            part,
        )
