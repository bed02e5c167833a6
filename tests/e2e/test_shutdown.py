"""Ending a process behind a load balancer: it announces its end, and serves on meanwhile."""

import http.client
import signal
import time
from collections.abc import Mapping

from redis.asyncio import Redis

from tests.e2e.processes import LOOPBACK, Service, service_process, status_of, wait_until

DELAY_SECONDS = 2


def get(service: Service, path: str) -> http.client.HTTPResponse:
    """Send a request on a connection of its own."""
    connection = http.client.HTTPConnection(LOOPBACK, int(service.environment["PORT"]), timeout=5)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


async def test_it_says_that_it_ends_and_serves_until_it_does(
    environment: Mapping[str, str], redis: Redis
) -> None:
    with service_process(
        environment, WORKERS="2", SHUTDOWN_DELAY_SECONDS=str(DELAY_SECONDS)
    ) as service:
        assert get(service, "/health/live").getheader("Connection") is None
        told = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        ready = f"{service.url}/health/ready"
        wait_until(lambda: status_of(ready) == 503, "it does not say that it ends")
        while time.monotonic() < told + DELAY_SECONDS - 0.5:
            refused, served = get(service, "/health/ready"), get(service, "/health/live")
            assert (refused.status, refused.getheader("Retry-After")) == (503, "1")
            assert (served.status, served.getheader("Connection")) == (200, "close")
        assert service.process.wait(10) == 0
        assert time.monotonic() > told + DELAY_SECONDS
