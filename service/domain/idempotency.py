"""Repeated requests get the first answer (draft-ietf-httpapi-idempotency-key-header)."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

KEPT_FOR: Final = timedelta(hours=24)
MOST_KEPT: Final = 1000
"""Per user: another key makes the oldest be forgotten."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's key. `scope` is who may repeat it, `fingerprint` a keyed hash of the request.

    `user_id` is the signed-in user, with whose account the kept answer is erased.
    """

    scope: str
    key: str
    fingerprint: bytes
    user_id: UUID | None = None
