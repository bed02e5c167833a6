"""The image and the compose file, run for real by a Docker engine: `make image`.

The images are built with the engine's host network, and nothing is pulled but the bases.
"""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from tests.e2e.processes import ROOT
from tests.factories import PASSWORD

RELEASE_BEFORE: Final = "8f26ddf"
"""What is upgraded from: its compose file has passwords that everybody knows."""
READY_SECONDS: Final = 120


def run(*command: str | Path, **options: Any) -> str:
    """Run a command; return what it prints."""
    done = subprocess.run(
        list(map(str, command)), check=False, text=True, capture_output=True, **options
    )
    printed: str = done.stdout
    assert done.returncode == 0, f"{command}\n{printed}\n{done.stderr}"
    return printed


def why_not() -> str:
    """Return why these tests cannot run; nothing if they can."""
    if not os.environ.get("IMAGE"):
        return "takes minutes and a Docker engine: run `make image`"
    try:
        subprocess.run(["docker", "info"], check=True, capture_output=True)
        subprocess.run(["docker", "compose", "version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "no Docker engine with compose runs here"
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@dataclass
class Project:
    """A compose project of the test's own."""

    name: str
    files: list[Path]

    def compose(self, *arguments: str) -> str:
        files = [word for file in self.files for word in ("--file", str(file))]
        return run("docker", "compose", "--project-name", self.name, *files, *arguments)

    def up(self, *, profile: str | None = None) -> None:
        options = ["--profile", profile] if profile else []
        self.compose(*options, "up", "--detach", "--no-build")

    def url(self, service: str = "service", port: int = 8080) -> str:
        return f"http://{self.compose('port', service, str(port)).strip()}"

    def wait_until_ready(self, service: str = "service") -> None:
        ends = time.monotonic() + READY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(
                    f"{self.url(service)}/health/ready", timeout=3
                ) as ready:
                    if json.load(ready)["status"] == "ok":
                        return
            except (OSError, AssertionError, ValueError, KeyError):
                pass
            assert time.monotonic() < ends, self.compose("logs", "--tail", "30")
            time.sleep(0.2)

    def kill(self, service: str) -> None:
        """Kill the container's process as a crash would: `docker kill` counts as a stop."""
        container = self.compose("ps", "--quiet", service).strip()
        inspect = ("docker", "inspect", "--format", "{{.State.Pid}}", container)
        pid = run(*inspect)
        run("kill", "-KILL", pid.strip())
        ends = time.monotonic() + 10
        while run(*inspect) == pid:  # the engine has not seen it yet
            assert time.monotonic() < ends
            time.sleep(0.05)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        token: str | None = None,
        service: str = "service",
    ) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        headers: Mapping[str, str] = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {token}"} if token else {}),
        }
        request = urllib.request.Request(
            f"{self.url(service)}/api/v1{path}",
            None if body is None else json.dumps(body).encode(),
            headers,
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def sign_in(self, email: str, service: str = "service") -> str:
        body = {"email": email, "password": PASSWORD}
        status, tokens = self.call("POST", "/auth/login", body, service=service)
        assert status == 200, tokens
        token: str = tokens["access_token"]
        return token

    def tell_the_story(self, email: str, service: str = "service") -> str:
        """Register somebody with a code, and somebody with the code; return the code."""
        person = {"email": email, "password": PASSWORD}
        assert self.call("POST", "/auth/register", person, service=service)[0] == 201
        token = self.sign_in(email, service)
        status, code = self.call(
            "POST", "/referral-code", {"expires_in_days": 30}, token, service=service
        )
        assert status == 201, code
        found = self.call("GET", f"/referral-code/{email}", service=service)[1]
        assert found["code"] == code["code"]
        friend = {**person, "email": f"friend-of-{email}", "referral_code": code["code"]}
        assert self.call("POST", "/auth/register", friend, service=service)[0] == 201
        assert self.referrals(token, service) == [friend["email"]]
        shown: str = code["code"]
        return shown

    def referrals(self, token: str, service: str = "service") -> list[str]:
        _, page = self.call("GET", "/referrals/me", token=token, service=service)
        return [item["email"] for item in page["items"]]


@pytest.fixture(scope="module")
def image() -> str:
    run("docker", "build", "--network", "host", "--tag", "referrals", ROOT)
    return "referrals"


def open_ports(folder: Path) -> Path:
    """Return an override by which the project's ports are free ones of loopback."""
    override = folder / "ports.yml"
    override.write_text(
        "services:\n"
        '  service: {ports: !override ["127.0.0.1::8080"]}\n'
        '  demo: {ports: !override ["127.0.0.1::8080", "127.0.0.1::8093"]}\n'
    )
    return override


@pytest.fixture(scope="module")
def project(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("compose")
    project = Project(
        f"referrals-{uuid4().hex[:8]}", [ROOT / "docker-compose.yml", open_ports(folder)]
    )
    try:
        project.up()
        project.wait_until_ready()
        yield project
    finally:
        project.compose("--profile", "demo", "down", "--volumes", "--timeout", "5")


def test_the_image_holds_what_runs_and_no_more(image: str) -> None:
    in_image = ("docker", "run", "--rm", "--entrypoint", "python", image, "-c")
    for name in ("pip", "tests", "pytest", "service.embedded"):
        find = f"from importlib.util import find_spec; print(find_spec({name!r}))"
        assert run(*in_image, find).strip() == "None"
    assert run(*in_image, "import os; print(os.getuid())").strip() == "10001"
    bare = int(run("docker", "inspect", "--format", "{{.Size}}", "python:3.13-slim"))
    whole = int(run("docker", "inspect", "--format", "{{.Size}}", image))
    assert whole - bare < 80_000_000  # 57 MB of it are breached passwords


def test_nothing_is_known_beforehand(project: Project) -> None:
    """Nobody who has read the compose file knows a password of the servers."""
    assert "PASSWORD" not in project.compose("config").replace("ALTER ROLE referrals PASSWORD", "")
    ask = "redis-cli INFO server 2>&1 | head -1"
    assert "NOAUTH" in project.compose("exec", "redis", "sh", "-c", ask)
    for password in ("referrals", "postgres", ""):
        log_in = (
            f"PGPASSWORD='{password}' psql -h $(hostname) -U referrals -c 'SELECT 1' 2>&1 || true"
        )
        answer = project.compose("exec", "postgresql", "sh", "-c", log_in)
        assert "1 row" not in answer


def test_the_story(project: Project) -> None:
    project.tell_the_story("anna@example.com")


def test_after_a_restart_everything_is_there(project: Project) -> None:
    project.compose("restart", "--timeout", "10")
    project.wait_until_ready()
    token = project.sign_in("anna@example.com")
    assert project.referrals(token) == ["friend-of-anna@example.com"]


@pytest.mark.parametrize("service", ["service", "redis", "postgresql"])
def test_a_container_that_is_killed_comes_back(project: Project, service: str) -> None:
    before = project.sign_in("anna@example.com")
    project.kill(service)
    project.wait_until_ready()
    assert project.referrals(before) == ["friend-of-anna@example.com"]
    project.tell_the_story(f"after-{service}@example.com")


def test_the_data_survive_down_and_up(project: Project) -> None:
    project.compose("down", "--timeout", "10")
    project.up()
    project.wait_until_ready()
    token = project.sign_in("anna@example.com")
    assert project.referrals(token) == ["friend-of-anna@example.com"]


def test_the_demo_runs_beside_it(project: Project) -> None:
    build = ("docker", "build", "--network", "host", "--target", "stand-ins")
    run(*build, "--tag", "referrals-stand-ins", ROOT)
    project.up(profile="demo")
    project.wait_until_ready("demo")
    project.tell_the_story("dora@example.com", "demo")
    ends = time.monotonic() + 30
    mails = ""
    while "dora@example.com" not in mails:
        assert time.monotonic() < ends, mails
        with (
            suppress(OSError),  # its mail page may not listen yet
            urllib.request.urlopen(project.url("demo", 8093), timeout=5) as page,
        ):
            mails = page.read().decode()
        time.sleep(0.2)
    assert (
        project.call("POST", "/auth/login", {"email": "dora@example.com", "password": PASSWORD})[0]
        == 401
    ), "the demo has a database of its own"


def test_it_needs_no_network_outside(image: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside.yml"
    inside.write_text("networks: {default: {internal: true}}\n")
    project = Project(f"referrals-{uuid4().hex[:8]}", [ROOT / "docker-compose.yml", inside])
    ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080{}').status)"
    try:
        project.up()
        ends = time.monotonic() + READY_SECONDS
        while "(healthy)" not in project.compose("ps", "service"):
            assert time.monotonic() < ends, project.compose("logs", "--tail", "30")
            time.sleep(0.5)
        for path in ("/health/ready", "/docs", "/openapi.json"):
            told = project.compose("exec", "service", "python", "-c", ask.format(path))
            assert told.strip() == "200"
    finally:
        project.compose("down", "--volumes", "--timeout", "5")


def test_the_release_before_is_upgraded_with_its_data(image: str, tmp_path: Path) -> None:
    try:
        archive = subprocess.run(
            ["git", "archive", RELEASE_BEFORE], cwd=ROOT, check=True, capture_output=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the history does not go back to the release before")
    subprocess.run(
        ["docker", "build", "--network", "host", "--tag", "referrals-before", "-"],
        input=archive, check=True, capture_output=True,
    )  # fmt: skip
    old_file = tmp_path / "docker-compose.yml"
    old_file.write_text(
        run("git", "show", f"{RELEASE_BEFORE}:docker-compose.yml", cwd=ROOT).replace(
            "image: referrals\n", "image: referrals-before\n"
        )
    )
    ports = open_ports(tmp_path)
    name = f"referrals-{uuid4().hex[:8]}"
    before = Project(name, [old_file, ports])
    after = Project(name, [ROOT / "docker-compose.yml", ports])
    try:
        before.up()
        before.wait_until_ready()
        before.tell_the_story("anna@example.com")
        old_token = before.sign_in("anna@example.com")
        after.up()
        after.wait_until_ready()
        assert after.referrals(old_token) == ["friend-of-anna@example.com"]
        after.sign_in("anna@example.com")
        test_nothing_is_known_beforehand(after)
    finally:
        after.compose("down", "--volumes", "--timeout", "5")
