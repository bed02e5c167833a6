"""Settings that work and are a risk."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from service.providers.settings import SmtpSettings
from service.settings.settings import Settings

OWASP_ARGON2: Final = ((47_104, 1), (19_456, 2), (12_288, 3), (9216, 4), (7168, 5))
"""The least costs of a hash, in KiB and passes, that OWASP's Password Storage Cheat Sheet names."""

_INSIDE: Final = tuple(map(ip_network, ("127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10")))


def risks_of(settings: Settings) -> list[str]:
    """Return what no public service should have set: one sentence each, for the log.

    Logged and not refused, because tests, and services within a private network, have reasons.
    """
    app_url = settings.mail and settings.mail.app_url
    risks = [
        f"{name} begins with http://: passwords and tokens travel unencrypted."
        for name, url in (("PUBLIC_URL", settings.public_url), ("APP_URL", app_url or ""))
        if url.startswith("http://") and not _is_loopback(urlsplit(url).hostname or "")
    ]
    cost = settings.argon2
    if not any(cost.memory_kib >= kib and cost.passes >= passes for kib, passes in OWASP_ARGON2):
        risks.append(
            "ARGON2_MEMORY_KIB and ARGON2_PASSES are below OWASP's minimum, 19456 and 2: "
            "passwords in a stolen database are easier to crack."
        )
    delivery = settings.mail.delivery if settings.mail else None
    if isinstance(delivery, SmtpSettings) and not (
        delivery.implicit_tls or delivery.user or _is_loopback(delivery.host)
    ):
        risks.append(
            "SMTP_URL is smtp:// without a password: if the mail server does not offer STARTTLS, "
            "mails and the tokens in them travel unencrypted."
        )
    if any(map(_leads_inside, settings.webhook_networks)):
        risks.append(
            "WEBHOOK_NETWORKS includes loopback or link-local addresses: anyone who manages "
            "webhooks can send requests to services on this machine and to its cloud's metadata "
            "service."
        )
    return risks


def _leads_inside(network: IPv4Network | IPv6Network) -> bool:
    return any(network.overlaps(inside) for inside in _INSIDE if inside.version == network.version)


def _is_loopback(host: str) -> bool:
    """Whether the host of a URL is this machine, by name or by address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")
