"""The service in processes of its own, as operators run it."""

import atexit
import functools
import multiprocessing
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg

from service.postgresql.migrations import apply_migrations

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).parents[2]
START_SECONDS = 30
COMMAND = [sys.executable, "-m", "service"]


@dataclass(frozen=True)
class Service:
    """A running service, its address, its first process, and its environment."""

    url: str
    environment: Mapping[str, str]
    process: "subprocess.Popen[str]"


@contextmanager
def service_process(
    environment: Mapping[str, str], log: IO[str] | None = None, /, **changes: str
) -> Iterator[Service]:
    """Run `serve` with a database of its own, until the block ends."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    with own_database(environment["DATABASE_URL"]) as database_url:
        own = {"HOST": LOOPBACK, "PORT": str(port), "PUBLIC_URL": url, "WORKERS": "1"}
        told = {**environment, "DATABASE_URL": database_url, **own, **changes}
        with started([*COMMAND, "serve"], told, stderr=log) as process:
            wait_for(f"{url}/health/ready", process)
            yield Service(url, told, process)


@contextmanager
def started(
    command: list[str], environment: Mapping[str, str], **options: Any
) -> Iterator["subprocess.Popen[str]"]:
    """Run a program until the block ends, and end it if it has not ended by itself."""
    whole = {**os.environ, **environment}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=whole, text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def run(
    *arguments: str, environment: Mapping[str, str], **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m service` to its end."""
    if not options:
        return _run_forked(arguments, environment)
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


FORKING: Final = multiprocessing.get_context("forkserver")
"""Forks commands from a process that has imported the service, which is most of what they do."""
FORKING.set_forkserver_preload(["service.__main__", "service.app", "service.server.supervisor"])


def _run_forked(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    with tempfile.TemporaryDirectory(prefix="command-") as folder:
        output, errors = Path(folder, "stdout"), Path(folder, "stderr")
        whole = {**os.environ, **environment}
        process = FORKING.Process(target=_be_command, args=(arguments, whole, output, errors))
        process.start()
        process.join(60)
        assert process.exitcode is not None, f"{arguments} does not end"
        return subprocess.CompletedProcess(
            arguments, process.exitcode, output.read_text(), errors.read_text()
        )


def _be_command(
    arguments: Sequence[str], environment: Mapping[str, str], output: Path, errors: Path
) -> None:
    """Become `python -m service`, in a forked process."""
    for path, number in ((output, 1), (errors, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["service", *arguments]
    sys.modules.pop("service.__main__")  # or runpy warns
    runpy.run_module("service", run_name="__main__")


def wait_for(url: str, process: "subprocess.Popen[str]") -> None:
    """Wait until something answers at `url` with anything but 503."""

    def answers() -> bool:
        assert process.poll() is None, f"ended with {process.poll()}"
        return status_of(url) not in {None, 503}

    wait_until(answers, f"nothing answers at {url}")


def wait_until(holds: Callable[[], bool], complaint: str) -> None:
    """Wait until something holds; fail after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


def status_of(url: str) -> int | None:
    """Return the status of the answer at `url`; None where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return None


def workers_of(parent: int) -> list[int]:
    """Return the processes that have `parent` for their parent."""
    found = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in found.read_text().split()]


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def own_database(url: str) -> Iterator[str]:
    """Make a migrated database, and drop it when the block ends."""
    with _database(url, _migrated_template(url)) as own_url:
        yield own_url


@functools.cache
def _migrated_template(url: str) -> str:
    """Return the name of a database to copy: migrating each would take five times as long."""
    made = ExitStack()
    own_url = made.enter_context(_database(url, "template1"))
    apply_migrations(own_url)

    @atexit.register
    def drop() -> None:
        with suppress(psycopg.OperationalError):  # an embedded server has ended by then
            made.close()

    return urlsplit(own_url).path.removeprefix("/")


@contextmanager
def _database(url: str, template: str) -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield urlsplit(url)._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def copy_of_the_project(folder: Path) -> Path:
    """Return a folder with what `dev` needs, so that its data is not the developer's."""
    for name in ("service", "sql"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
