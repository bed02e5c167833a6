"""Other people's programs that judge the service."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.processes import Service, run
from tests.factories import PASSWORD

HERE = Path(__file__).parent
NPM_SECONDS = 120


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
    """Register somebody; return the e-mail and the password."""
    person = {"email": f"{uuid4().hex}@example.com", "password": PASSWORD}
    request = urllib.request.Request(
        f"{service.url}/api/v1/auth/register",
        json.dumps(person).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        assert response.status == 201
    return person


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
            told = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
            pytest.skip(f"npm could not install the clients: {told[:1]}")
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
