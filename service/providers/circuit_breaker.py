"""Leaving an outside service alone while it fails."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from service.domain.errors import ProviderUnavailable
from service.telemetry.metrics import PROVIDER_BREAKER_OPEN

FAILURES: Final = 5
"""This many in a row open the breaker."""
OPEN_SECONDS: Final = 10.0


class CircuitBreaker:
    """Refuses calls for a while after failures in a row, then lets one through as a probe."""

    def __init__(self, provider: str) -> None:
        self._gauge = PROVIDER_BREAKER_OPEN.labels(provider)
        self._gauge.set(0)
        self._failures = 0
        self._retry_at = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count a block that raises ProviderUnavailable; raise it at once while open."""
        now = time.monotonic()
        if self._failures >= FAILURES:
            if now < self._retry_at:
                raise ProviderUnavailable
            self._retry_at = now + OPEN_SECONDS  # for all but this call
        try:
            yield
        except ProviderUnavailable:
            self._failures += 1
            if self._failures >= FAILURES:
                self._retry_at = time.monotonic() + OPEN_SECONDS
                self._gauge.set(1)
            raise
        self._failures = 0
        self._gauge.set(0)
