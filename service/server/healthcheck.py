"""Whether the service beside this process is ready, for the image's health check.

`python -m service.server.healthcheck /health/ready` asks where HOST and PORT say, and imports next
to nothing, because it runs every few seconds.
"""

import http.client
import os
import sys
from typing import Final

from dotenv import dotenv_values

SECONDS: Final = 2.0
_LOOPBACK: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def main(path: str) -> int:
    """Ask once; return the exit status."""
    variables = {**dotenv_values(os.environ.get("ENV_FILE", ".env"), interpolate=False)}
    variables |= {name: value for name, value in os.environ.items() if value}
    host = (variables.get("HOST") or "").split(",")[0].strip().strip("[]")
    port = int(variables.get("PORT") or 8080)
    # No library that would send it through the proxy that the environment names for others.
    connection = http.client.HTTPConnection(_LOOPBACK.get(host, host), port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"{host}:{port} does not answer: {error}\n")
        return 1
    return 0 if status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
