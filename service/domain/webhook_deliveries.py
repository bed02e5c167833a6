"""How webhooks are delivered: endpoints, secrets, signatures (Standard Webhooks 1.0), retries."""

import base64
import hmac
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

MESSAGES_KEPT_FOR: Final = timedelta(days=30)
DISABLED_AFTER: Final = timedelta(days=5)
"""An endpoint of which every attempt has failed for so long is disabled."""
LONGEST_RETRY_AFTER: Final = timedelta(days=1)
_WAITS: Final = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
MOST_ATTEMPTS: Final = len(_WAITS) + 1
_LATER_BY_UP_TO: Final = 0.2
_SHORTEST_REST: Final = timedelta(seconds=1)
_LONGEST_REST: Final = timedelta(minutes=5)
GONE: Final = 410
"""The status by which a receiver says that it wants no more webhooks."""


class DisabledReason(StrEnum):
    """Why an endpoint is sent nothing."""

    REQUESTED = "requested"
    GONE = "gone"
    """It answered 410."""
    FAILING = "failing"
    """Every attempt failed for DISABLED_AFTER."""
    DELETED = "deleted"


class DeliveryState(StrEnum):
    """What has become of a message on its way to an endpoint."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class FailureReason(StrEnum):
    """Why a delivery failed for good."""

    GAVE_UP = "gave-up"
    """All attempts failed."""
    DISABLED = "disabled"
    """Its endpoint was disabled or deleted meanwhile."""


class AttemptError(StrEnum):
    """Why an attempt got no answer."""

    TIMEOUT = "timeout"
    ADDRESS_NOT_ALLOWED = "address-not-allowed"
    NAME_NOT_FOUND = "name-not-found"
    TLS_FAILED = "tls-failed"
    CONNECTION_FAILED = "connection-failed"
    NOT_HTTP = "not-http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a company listens. Empty `types` stand for all."""

    endpoint_id: UUID
    url: str
    types: Sequence[str]
    secret_number: int = 1
    previous_until: datetime | None = None
    failing_since: datetime | None = None
    disabled_at: datetime | None = None
    disabled_reason: DisabledReason | None = None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointCounts:
    """How many endpoints are sent to, wait after a failure, or are disabled."""

    live: int
    resting: int
    disabled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message that a worker has claimed to send to an endpoint.

    `tries` includes this one. A message that is no longer kept has no `body`.
    """

    job_id: UUID
    tries: int
    message_id: UUID
    body: bytes | None
    endpoint_id: UUID
    url: str
    secret_number: int
    previous_until: datetime | None
    failing_since: datetime | None

    @property
    def is_probe(self) -> bool:
        """Whether it finds out if a failing endpoint answers again; the others wait for it."""
        return self.failing_since is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended: with a status, or with an error."""

    status: int | None = None
    error: AttemptError | None = None
    milliseconds: int
    retry_after: timedelta | None = None
    """How long the receiver asks to wait."""

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt as it is shown."""

    at: datetime
    status: int | None
    error: str | None
    milliseconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownDelivery:
    """A delivery as it is shown, with its attempts, oldest first."""

    message_id: UUID
    type: str
    state: DeliveryState
    reason: str | None
    created_at: datetime
    attempts: Sequence[Attempt]


class Secrets:
    """The secrets that sign. None is stored: each is computed from its endpoint and number."""

    def __init__(self, hash_key: bytes) -> None:
        self._key = hmac.digest(hash_key, b"webhook secrets", "sha256")

    def _raw(self, endpoint_id: UUID, number: int) -> bytes:
        return hmac.digest(self._key, endpoint_id.bytes + number.to_bytes(4, "big"), "sha256")

    def text(self, endpoint_id: UUID, number: int) -> str:
        """Return a secret as receivers are configured with it."""
        return f"whsec_{base64.b64encode(self._raw(endpoint_id, number)).decode()}"

    def headers(self, delivery: Delivery, body: bytes, now: datetime) -> dict[str, str]:
        """Return the headers of an attempt made now; the previous secret may sign along."""
        numbers = [delivery.secret_number]
        if delivery.previous_until is not None and now < delivery.previous_until:
            numbers.append(delivery.secret_number - 1)
        timestamp = int(now.timestamp())
        signed = f"{delivery.message_id}.{timestamp}.".encode() + body
        signatures = (
            hmac.digest(self._raw(delivery.endpoint_id, number), signed, "sha256")
            for number in numbers
        )
        return {
            "Content-Type": "application/json",
            "webhook-id": str(delivery.message_id),
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(
                f"v1,{base64.b64encode(signature).decode()}" for signature in signatures
            ),
        }


def wait_after(tries: int, retry_after: timedelta | None) -> timedelta | None:
    """Return how long a delivery waits after so many failed attempts; None: it has failed.

    With jitter: deliveries that failed together must not come back together.
    """
    if tries >= MOST_ATTEMPTS:
        return None
    wait = _WAITS[tries - 1] * random.uniform(1, 1 + _LATER_BY_UP_TO)  # noqa: S311
    return max(wait, min(retry_after or timedelta(), LONGEST_RETRY_AFTER))


def rest_after(failing_since: datetime | None, now: datetime) -> timedelta:
    """Return how long an endpoint rests after a failure: as long as it has failed so far.

    So rests double, from a second up to five minutes.
    """
    failing_for = now - failing_since if failing_since else timedelta()
    return min(max(failing_for, _SHORTEST_REST), _LONGEST_REST)
