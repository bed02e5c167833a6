"""Workers that cannot live end their parent; those that others end are replaced."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.processes import (
    LOOPBACK,
    free_port,
    service_process,
    started,
    status_of,
    wait_until,
    workers_of,
)

DYING = """
import os, signal, sys
from service.cli.parser import main
from service.server import worker

serve = worker.serve

async def at_start(*arguments):
    raise RuntimeError("nobody foresaw this")

async def later(settings, listeners, parent_lives, when_ready):
    import asyncio
    task = asyncio.create_task(serve(settings, listeners, parent_lives, when_ready))
    await asyncio.sleep(1)
    task.cancel()
    raise RuntimeError("nobody foresaw this")

async def without_a_word(*arguments):
    os.kill(os.getpid(), signal.SIGSEGV)

async def for_lack_of_memory(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

worker.serve = vars()[sys.argv[1]]
sys.exit(main(["serve"]))
"""


@pytest.mark.parametrize(
    ("how", "ending"),
    [
        ("at_start", "status 1"),
        ("later", "status 1"),
        ("without_a_word", "signal 11"),
        ("for_lack_of_memory", "signal 9"),
    ],
)
def test_workers_that_die_at_once_end_the_parent_after_a_few_tries(
    environment: dict[str, str], how: str, ending: str
) -> None:
    command = [sys.executable, "-c", DYING, how]
    told = {**environment, "HOST": LOOPBACK, "PORT": str(free_port()), "WORKERS": "2"}
    with started(command, told, stderr=subprocess.PIPE) as process:
        assert process.wait(30) == 1
        assert process.stderr is not None
        *lines, last = process.stderr.read().splitlines()
    deaths = [line for line in lines if "worker died, starting another: " in line]
    assert deaths
    assert all(f", {ending}" in line for line in deaths)
    assert last == ("3 workers in a row ended right after they had started; see the lines above.")
    assert status_of(f"http://{LOOPBACK}:{told['PORT']}/health/live") is None


def test_workers_that_others_kill_are_replaced_however_often(environment: dict[str, str]) -> None:
    with service_process(environment, WORKERS="2") as service:
        for _ in range(5):
            for pid in workers_of(service.process.pid):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)  # some before they serve, others after it
            wait_until(
                lambda: status_of(f"{service.url}/health/ready") == 200,
                "the killed workers are not replaced",
            )
        for pid in workers_of(service.process.pid):
            os.kill(pid, signal.SIGTERM)  # as some process managers do
        wait_until(
            lambda: (
                len(workers_of(service.process.pid)) == 2
                and status_of(f"{service.url}/health/ready") == 200
            ),
            "the ended workers are not replaced",
        )
