"""How often something may be asked for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `requests` in each window of `seconds`."""

    requests: int
    seconds: int
