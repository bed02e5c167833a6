"""What operators are told of security events."""

from pathlib import Path

import pytest

from service.domain.security_events import SecurityEvent

README = Path(__file__).parents[2] / "service" / "server" / "README.md"


@pytest.mark.parametrize("event", SecurityEvent)
def test_the_readme_names_every_event(event: SecurityEvent) -> None:
    assert f"`{event}`" in README.read_text()
