"""How the service reaches Redis, and what it keeps there."""

from typing import Final

TIMEOUT_SECONDS: Final = 0.25
"""How long one exchange with a server may take, connecting included."""


class RedisAway(Exception):
    """Redis did not answer in time, or is not in use at the moment."""
