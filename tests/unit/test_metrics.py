"""The metrics that the service does not leave to the library."""

import random

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service.telemetry.metrics import Durations

BUCKETS = (0.001, 0.01, 0.1)


def test_many_durations_count_as_much_as_each() -> None:
    numbers = random.Random(1)
    durations = [
        ((method, status), numbers.choice([0.0, 0.0004, 0.001, 0.0011, 0.05, 0.1, 7.0]))
        for method in ("GET", "POST")
        for status in ("200", "404")
        for _ in range(50)
    ]
    one_by_one, together = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("seconds", "", ["method", "status"], registry=one_by_one, buckets=BUCKETS)
    for labels, seconds in durations:
        histogram.labels(*labels).observe(seconds)
    batches = Durations("seconds", "", ["method", "status"], registry=together, buckets=BUCKETS)
    batches.observe_all(durations[:70])
    batches.observe_all(durations[70:])
    assert _counts(together) == _counts(one_by_one)
    for labels in (("GET", "200"), ("POST", "404")):
        of = {"method": labels[0], "status": labels[1]}
        wanted = one_by_one.get_sample_value("seconds_sum", of)
        assert together.get_sample_value("seconds_sum", of) == pytest.approx(wanted)


def _counts(registry: CollectorRegistry) -> list[str]:
    """Return the exposition without the sums, which rounding lets differ, and the time."""
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_sum" not in line and "_created" not in line]
