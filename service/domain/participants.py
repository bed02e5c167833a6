"""Who takes part in a programme: an account, or a person whom only a company knows."""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final
from uuid import UUID

from service.domain.emails import Email, fold_mailbox

SIGNALS_KEPT_FOR: Final = timedelta(days=90)


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A participant. An account has its user id as `participant_id`, and no `external_id`.

    Nobody looks for fraud with a trusted one. The code of a blocked one is not live.
    """

    participant_id: UUID
    programme_id: UUID
    user_id: UUID | None
    external_id: str | None
    trusted: bool
    blocked: bool
    erased: bool
    public_name: str | None
    created_at: datetime


def external_hash(hash_key: bytes, programme_id: UUID, external_id: str) -> bytes:
    """Return what stays of a company's id when its participant is erased."""
    return hmac.digest(hash_key, f"participant {programme_id} {external_id}".encode(), "sha256")


def signals_of(
    hash_key: bytes, programme_id: UUID, email: Email | None, ip: str | None, device_id: str | None
) -> dict[str, bytes]:
    """Return keyed hashes, by kind, of what a company tells about a person.

    Tags and dots that do not make another mailbox do not count, nor does the second half of an
    IPv6 address.
    """
    told = {
        "email": email and fold_mailbox(email.key),
        "ip": ip and _network_of(ip),
        "device": device_id,
    }
    return {
        kind: hmac.digest(hash_key, f"signal {kind} {programme_id} {text}".encode(), "sha256")
        for kind, text in told.items()
        if text
    }


def _network_of(ip: str) -> str:
    address = ip_address(ip)
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network((address, 64), strict=False))
    return str(address)
