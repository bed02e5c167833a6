"""The closed loop: wrk, whose connections each send a request as soon as they have an answer."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.load.machine import OTHER_CORES, busy_seconds, cpu_of, pinned_to
from tests.load.servers import Data, Server

REQUESTS_LUA: Final = Path(__file__).with_name("requests.lua")
CONNECTIONS: Final = 64


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round of load gave."""

    requests: int
    seconds: float
    refused: int
    """Answers of 400 and more."""
    p50: float
    """Milliseconds."""
    p99: float
    server_cpu: float
    """Microseconds of CPU a request."""
    data_cpu: float
    """The same of PostgreSQL and Redis."""
    load_cpu: float
    """Share of its core that wrk took."""
    foreign: float
    """Share of the machine that other processes took."""

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    def measures(self) -> dict[str, float]:
        """Return what a row of the report compares, and what explains it."""
        return {
            "rate": self.rate,
            "p50": self.p50,
            "p99": self.p99,
            "CPU": self.server_cpu,
            "CPU of data": self.data_cpu,
            "load": self.load_cpu,
            "foreign": self.foreign,
        }

    @property
    def answered(self) -> float:
        """The rate of those that were not refused."""
        return (self.requests - self.refused) / self.seconds


def check_installed() -> None:
    if shutil.which("wrk") is None:
        raise SystemExit("The benchmark needs wrk: `apt-get install wrk` or `brew install wrk`.")


def run(
    server: Server,
    data: Data,
    requests: Path,
    seconds: float,
    *,
    connections: int = CONNECTIONS,
    mark: int = 0,
) -> Round:
    """Send the requests of a file to the server, from place `mark` on."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        "--timeout",
        "10s",
    ]
    command += ["-s", str(REQUESTS_LUA), server.url, "--", str(requests), str(mark)]
    data_pids = data.pids()
    pids = [*server.pids, *data_pids, os.getpid()]
    busy, own, of_server, of_data = busy_seconds(), cpu_of(pids), cpu_of(server.pids), 0.0
    of_data = cpu_of(data_pids)
    with subprocess.Popen(
        pinned_to(OTHER_CORES, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    line = next((line for line in output.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(f"wrk failed: {output}")
    result = json.loads(line.removeprefix("RESULT "))
    if result["broken"]:
        raise RuntimeError(f"Requests went unanswered: {output}")
    of_wrk = used.ru_utime + used.ru_stime
    took = result["microseconds"] / 1e6
    requests_sent = result["requests"]
    cores = os.cpu_count() or 1
    known = cpu_of(pids) - own + of_wrk
    return Round(
        requests=requests_sent,
        seconds=took,
        refused=result["refused"],
        p50=result["p50"] / 1000,
        p99=result["p99"] / 1000,
        server_cpu=(cpu_of(server.pids) - of_server) / requests_sent * 1e6,
        data_cpu=(cpu_of(data_pids) - of_data) / requests_sent * 1e6,
        load_cpu=of_wrk / took,
        foreign=max(0.0, busy_seconds() - busy - known) / (took * cores),
    )
