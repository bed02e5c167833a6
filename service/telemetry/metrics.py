"""What the service counts for Prometheus. Operators rely on the names."""

import os
from bisect import bisect_right
from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from service.telemetry.access_log import LoggedRequest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Durations(Histogram):
    """A histogram that observes many requests at once, which takes a tenth of the time."""

    def observe_all(self, durations: Iterable[tuple[tuple[object, ...], float]]) -> None:
        """Observe durations in seconds, each with the values of its labels."""
        by_labels = defaultdict(list)
        for values, seconds in durations:
            by_labels[values].append(seconds)
        for values, all_seconds in by_labels.items():
            child = self.labels(*values)
            all_seconds.sort()
            child._sum.inc(sum(all_seconds))  # noqa: SLF001
            below = 0
            for bucket, bound in zip(child._buckets, child._upper_bounds, strict=True):  # noqa: SLF001
                up_to = bisect_right(all_seconds, bound)
                if up_to > below:
                    bucket.inc(up_to - below)
                    below = up_to


REQUEST_SECONDS: Final = Durations(
    "http_request_duration_seconds",
    "Time to answer, by route and status.",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
CACHE_READS: Final[Counts[tuple[str, str]]] = Counts()
"""Reads through the cache by kind and result, since requests were last measured."""
_CACHE_READS: Final = Counter(
    "cache_reads", "Reads through the cache, by what was read and the result.", ["kind", "result"]
)
CIRCUIT_BREAKER_OPEN: Final = Gauge(
    "redis_circuit_breaker_open",
    "1 in a worker that does without Redis; the sum over the workers.",
    multiprocess_mode="livesum",
)
DATABASE_CONNECTIONS: Final = Gauge(
    "database_connections",
    "Connections to PostgreSQL, by state.",
    ["state"],
    multiprocess_mode="livesum",
)
REPLICA_READS: Final = Counter(
    "replica_reads",
    "Lists meant for the replica: read there, or it was behind or unreachable.",
    ["result"],
)
HASHES_PENDING: Final = Gauge(
    "password_hashes_pending", "Password hashes waiting or running.", multiprocess_mode="livesum"
)
RATE_LIMITED: Final[Counts[tuple[str]]] = Counts()
"""Requests refused by limit, since requests were last measured."""
_RATE_LIMITED: Final = Counter(
    "rate_limited", "Requests refused because there were too many, by limit.", ["limit"]
)
PROVIDER_CALLS: Final = Counter(
    "provider_calls", "Calls to external services, by provider and result.", ["provider", "result"]
)
PROVIDER_BREAKER_OPEN: Final = Gauge(
    "provider_circuit_breaker_open",
    "1 in a worker that does not call an external service for now; the sum over the workers.",
    ["provider"],
    multiprocess_mode="livesum",
)
JOBS_DONE: Final = Counter("jobs_done", "Jobs completed, by kind.", ["kind"])
JOBS_FAILED: Final = Counter("jobs_failed", "Failed attempts at jobs, by kind.", ["kind"])
# The same in every worker: the figures last read from the database.
JOBS_PENDING: Final = Gauge(
    "jobs_pending", "Jobs waiting, by kind.", ["kind"], multiprocess_mode="mostrecent"
)
JOBS_PARKED: Final = Gauge(
    "jobs_parked", "Jobs given up on, by kind.", ["kind"], multiprocess_mode="mostrecent"
)
JOBS_OLDEST_SECONDS: Final = Gauge(
    "jobs_oldest_seconds",
    "Age of the oldest waiting job, by kind.",
    ["kind"],
    multiprocess_mode="mostrecent",
)
WEBHOOK_ATTEMPTS: Final = Counter(
    "webhook_attempts",
    "Attempts to deliver webhooks: delivered, postponed after a failure, or failed for good.",
    ["result"],
)
WEBHOOK_ENDPOINTS: Final = Gauge(
    "webhook_endpoints",
    "Webhook endpoints: live, resting after a failure, or disabled.",
    ["state"],
    multiprocess_mode="mostrecent",
)

LEDGER_DIFFERENCES: Final = Gauge(
    "ledger_differences",
    "Balances, rewards and counts that the last check of the ledger found to be wrong.",
    multiprocess_mode="max",
)
REVIEWS_OPEN: Final = Gauge(
    "reviews_open", "Referrals that wait for a review.", multiprocess_mode="mostrecent"
)
REVIEWS_OLDEST_SECONDS: Final = Gauge(
    "reviews_oldest_seconds",
    "Age of the oldest referral that waits for a review.",
    multiprocess_mode="mostrecent",
)


def measure_requests(requests: Iterable[LoggedRequest]) -> None:
    """Count the requests that the access log has collected, and what was counted meanwhile."""
    REQUEST_SECONDS.observe_all(
        ((method, route, status), seconds) for _, _, method, route, status, seconds, _ in requests
    )
    _hand_over(CACHE_READS, _CACHE_READS)
    _hand_over(RATE_LIMITED, _RATE_LIMITED)


def _hand_over(counts: Counts[Any], counter: Counter) -> None:
    """Add to Prometheus' counter what was counted in plain ints, at a tenth of the cost."""
    for labels, count in counts.items():
        counter.labels(*labels).inc(count)
    counts.clear()


def exposition() -> bytes:
    """Return all metrics in Prometheus' text format, summed over the workers."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library has no types here
    return generate_latest(registry)
