"""Other people's programs that judge the service."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.processes import Service, run
from tests.factories import PASSWORD

HERE = Path(__file__).parent
INSTALL_SECONDS = 180


@dataclass(frozen=True)
class RegisteredClient:
    """What the command line has said of a new client."""

    client_id: str
    secret: str | None


def new_client(
    service: Service, *redirect_uris: str, confidential: bool = False, options: Iterable[str] = ()
) -> RegisteredClient:
    """Make an OAuth client as an operator does."""
    options = [*options, *(f"--redirect-uri={uri}" for uri in redirect_uris)]
    options += ["--confidential"] if confidential else []
    done = run("clients", "create", "A judge", *options, environment=service.environment)
    assert done.returncode == 0, done.stderr
    told = dict(line.split()[0].split("=", 1) for line in done.stdout.splitlines())
    return RegisteredClient(told["client_id"], told.get("client_secret"))


def new_person(service: Service) -> dict[str, str]:
    """Register somebody; return the email address and the password."""
    person = {"email": f"{uuid4().hex}@example.com", "password": PASSWORD}
    request = urllib.request.Request(
        f"{service.url}/api/v1/auth/register",
        json.dumps(person).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        assert response.status == 201
    return person


def install_npm_packages(folder: Path = HERE) -> Path:
    """Return a copy of the folder's drivers with the packages of its package.json, or skip.

    It is skipped where there is no Node that is new enough, or npm cannot install them.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no node or no npm on this machine (Debian: apt-get install nodejs npm)")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    needed = json.loads((folder / "package.json").read_text())["engines"]["node"].lstrip(">=")
    if _numbers(version.lstrip("v")) < _numbers(needed):
        pytest.skip(f"node {version} is too old for the packages, which need {needed}")
    files = [folder / "package.json", *sorted(folder.glob("*.mjs"))]
    options = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]

    def install(fresh: Path) -> None:
        for file in files:
            shutil.copy(file, fresh)
        _run_installer([npm, "install", *options], fresh)

    return _kept("npm-peers", files, install)


def install_python_packages(requirements: Path) -> Path:
    """Return a virtual environment with the packages, or skip where pip cannot install them."""

    def install(fresh: Path) -> None:
        _run_installer([sys.executable, "-m", "venv", "--without-pip", "."], fresh)
        pip = [sys.executable, "-m", "pip", "--python", ".", "--disable-pip-version-check"]
        _run_installer([*pip, "install", "--quiet", "-r", str(requirements)], fresh)

    return _kept("pip-peers", [requirements], install)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _run_installer(command: list[str], folder: Path) -> None:
    """Run a program that downloads packages; skip the test if it cannot."""
    name = " ".join(Path(part).name for part in command[:3])
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{name} has not installed the packages in {INSTALL_SECONDS} s")
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        pytest.skip(f"{name} could not install the packages: {errors[:1]}")


def _kept(prefix: str, files: list[Path], install: Callable[[Path], None]) -> Path:
    """Return what `install` makes of a new folder, kept for later runs with the same files."""
    digest = hashlib.sha256(sys.version.encode())
    for file in files:
        digest.update(file.read_bytes())
    kept = Path(tempfile.gettempdir()) / f"{prefix}-{os.getuid()}-{digest.hexdigest()[:16]}"
    if not kept.exists():
        fresh = Path(tempfile.mkdtemp(prefix=f"{prefix}-"))
        try:
            install(fresh)
            fresh.rename(kept)  # now that it is whole
        except OSError:
            if not kept.exists():  # otherwise another run was faster
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    if kept.stat().st_uid != os.getuid():
        pytest.skip(f"{kept} belongs to another user")
    return kept


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
