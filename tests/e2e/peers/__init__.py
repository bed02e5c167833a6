"""A service in a process of its own, and other people's programs that judge it."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from service.migrations import apply_migrations
from tests.factories import PASSWORD

HERE = Path(__file__).parent
LOOPBACK = "127.0.0.1"
NPM_SECONDS = 120
START_SECONDS = 30


@dataclass(frozen=True)
class RegisteredClient:
    """What the command line has said of a new client."""

    client_id: str
    secret: str | None


@dataclass(frozen=True)
class Service:
    """A running service, its issuer's address, and its command line."""

    url: str
    environment: Mapping[str, str]

    def run(self, *arguments: str) -> str:
        """Run `python -m service` beside it; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "service", *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def new_client(
        self, *redirect_uris: str, confidential: bool = False, scope: str | None = None
    ) -> RegisteredClient:
        """Make an OAuth client as an operator does."""
        options = [option for uri in redirect_uris for option in ("--redirect-uri", uri)]
        options += ["--confidential"] if confidential else []
        options += [] if scope is None else ["--scope", scope]
        lines = self.run("clients", "create", "A judge", *options).splitlines()
        told = dict(line.split()[0].split("=", 1) for line in lines)
        return RegisteredClient(told["client_id"], told.get("client_secret"))

    def new_person(self) -> dict[str, str]:
        """Register somebody; return the e-mail and the password."""
        person = {"email": f"{uuid4().hex}@example.com", "password": PASSWORD}
        request = urllib.request.Request(
            f"{self.url}/api/v1/auth/register",
            json.dumps(person).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            assert response.status == 201
        return person


@contextmanager
def service_process(environment: Mapping[str, str]) -> Iterator[Service]:
    """Run the service as operators do, with a database of its own, until the block ends."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    with _own_database(environment["DATABASE_URL"]) as database_url:
        own = {"HOST": LOOPBACK, "PORT": str(port), "PUBLIC_URL": url, "WORKERS": "2"}
        own["LOG_LEVEL"] = "warning"
        service = Service(url, {**environment, "DATABASE_URL": database_url, **own})
        command = [sys.executable, "-m", "service", "serve"]
        with started(command, env={**os.environ, **service.environment}) as process:
            wait_for(f"{url}/health/ready", process)
            yield service


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends; what it says is shown where a test fails."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until something answers at `url`, whatever the status."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 503:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"nothing answers at {url}; exit status {process.poll()}")


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def _own_database(url: str) -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            own_url = urlsplit(url)._replace(path=f"/{name}").geturl()
            apply_migrations(own_url)
            yield own_url
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def install_npm_packages() -> Path:
    """Return a folder with the drivers and the packages of package.json; skip where it cannot be.

    The packages are kept for the next run, in a folder named after their versions.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no node or no npm on this machine (Debian: apt-get install nodejs npm)")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < 20:
        pytest.skip(f"node {version} is too old for the clients, which need 20")
    digest = hashlib.sha256()
    files = [HERE / "package.json", *sorted(HERE.glob("*.mjs"))]
    for file in files:
        digest.update(file.read_bytes())
    kept = Path(tempfile.gettempdir()) / f"npm-peers-{os.getuid()}-{digest.hexdigest()[:16]}"
    if not kept.exists():
        _install(npm, files, kept)
    if kept.stat().st_uid != os.getuid():
        pytest.skip(f"{kept} is somebody else's")
    return kept


def _install(npm: str, files: list[Path], folder: Path) -> None:
    """Install into a new folder, and give it its name when it is whole."""
    fresh = Path(tempfile.mkdtemp(prefix="npm-peers-"))
    for file in files:
        shutil.copy(file, fresh)
    options = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(
            [npm, "install", *options],
            cwd=fresh,
            capture_output=True,
            text=True,
            timeout=NPM_SECONDS,
        )
        if done.returncode != 0:
            pytest.skip(f"npm could not install the clients: {done.stderr.strip()[-300:]}")
        fresh.rename(folder)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm has not installed the clients in {NPM_SECONDS} s")
    except OSError:
        if not folder.exists():  # else another run was faster
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def judged_by(folder: Path, driver: str, told: Mapping[str, Any]) -> Any:
    """Run a driver with node; return what it has seen."""
    done = subprocess.run(
        ["node", driver],
        cwd=folder,
        input=json.dumps(told),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
