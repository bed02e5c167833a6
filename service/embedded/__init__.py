"""Throwaway PostgreSQL and Valkey from pip wheels, for `make run` and the tests.

Nothing here imports the rest of the service, and production does not import this.

Enter the servers from the main thread, before other threads start: on Linux the kernel ends them
together with the *thread* that started them.
"""

from service.embedded.cache import valkey
from service.embedded.database import postgresql
from service.embedded.errors import EmbeddedServerError
from service.embedded.folders import exclusive

__all__ = ["EmbeddedServerError", "exclusive", "postgresql", "valkey"]
