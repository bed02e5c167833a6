"""Where webhooks may go: which URLs are accepted, and which addresses are connected to."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from service.domain.errors import WebhookUrlRefused

LONGEST_URL: Final = 2000
Networks = Sequence[IPv4Network | IPv6Network]

# Not `is_global`, which depends on Python's version and is true for multicast, site-local and
# 6to4 addresses, and for private ones behind NAT64.
_NOT_PUBLIC: Final = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",  # multicast, and all that is reserved
            # Within the only unicast addresses there are of IPv6, 2000::/3:
            "2001::/23",  # protocols, Teredo among them
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "3fff::/20",
        ),
    )
)
_UNICAST: Final = IPv6Network("2000::/3")
_PRINTABLE: Final = re.compile(r"[!-~]+")
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})+\.?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


def may_connect(address: str, networks: Networks, *, encrypted: bool) -> bool:
    """Whether an address is public, or in one of the company's own networks.

    What is not encrypted stays within these.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or found
    if any(found in network for network in networks):
        return True
    return encrypted and _is_public(found)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and (address.scope_id or address not in _UNICAST):
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def check_url(url: str, networks: Networks) -> None:
    """Raise WebhookUrlRefused unless webhooks may be sent there.

    A name is looked up only when something is sent: it may lead elsewhere by then.
    """
    if len(url) > LONGEST_URL:
        raise WebhookUrlRefused(f"The URL must have at most {LONGEST_URL:,} characters.")
    if not _PRINTABLE.fullmatch(url) or "\\" in url:
        raise WebhookUrlRefused(
            "The URL must be printable ASCII without spaces and backslashes; write an "
            "international host name as xn--…"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise WebhookUrlRefused("This is not a URL.") from None
    encrypted = parts.scheme == "https"
    if not encrypted and not (parts.scheme == "http" and networks):
        raise WebhookUrlRefused("The URL must begin with https://.")
    if "@" in parts.netloc:
        raise WebhookUrlRefused("The URL must not contain a user or a password.")
    if "#" in url:
        raise WebhookUrlRefused("The URL must not have a fragment.")
    if port == 0:
        raise WebhookUrlRefused("The port must not be 0.")
    _check_host(host, networks, is_ipv6="[" in parts.netloc, encrypted=encrypted)


def _check_host(host: str, networks: Networks, *, is_ipv6: bool, encrypted: bool) -> None:
    last_label = host.rstrip(".").rpartition(".")[2]
    if is_ipv6 or _NUMBER.fullmatch(last_label):  # an address, however it is written
        if not may_connect(host, networks, encrypted=encrypted):
            raise WebhookUrlRefused("The host is not a public IP address in the usual notation.")
    elif not _NAME.fullmatch(host) or len(host) > 253:
        raise WebhookUrlRefused("The host must be a full name such as hooks.example.com.")
