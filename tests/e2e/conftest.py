"""A service that the tests of browsers and commands share."""

from collections.abc import Iterator

import pytest

from tests.e2e.processes import service_process


@pytest.fixture(scope="session")
def live_service(environment: dict[str, str]) -> Iterator[str]:
    """The address of a service in a process of its own."""
    with service_process(environment) as service:
        yield service.url
