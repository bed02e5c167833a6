"""What the image is made of, as far as the Dockerfile says so: no engine is needed to read it."""

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from importlib.metadata import packages_distributions

import pytest

from tests.e2e.processes import ROOT

NOT_SENT = (".env", ".git/config", ".data/postgresql/PG_VERSION", "tests/conftest.py", "Makefile")


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the last stage, each with what follows it."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    stages = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    found = [line.partition(" ") for line in lines[stages[-1] :]]
    return [(name, rest.strip()) for name, _, rest in found]


def is_sent(path: str) -> bool:
    """Return whether the builder gets the file: of the patterns, the last that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        anywhere = "**/" in line
        parts = path.split("/")
        starts = range(len(parts)) if anywhere else [0]
        heads = ["/".join(parts[start:end]) for start in starts for end in range(len(parts) + 1)]
        if any(head and fnmatchcase(head, pattern) for head in heads):
            sent = line.startswith("!")
    return sent


def test_every_base_has_a_version() -> None:
    text = (ROOT / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    stages = re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE)
    assert bases
    for base in set(bases) - {"scratch", *stages}:
        assert re.fullmatch(r"python:3\.\d+(\.\d+)?-slim(@sha256:[0-9a-f]{64})?", base)


def test_it_runs_as_a_number_that_is_not_root() -> None:
    """Kubernetes' runAsNonRoot cannot see who a name is."""
    [user] = [rest for name, rest in instructions() if name == "USER"]
    assert int(user) > 0


@pytest.mark.parametrize("name", ["ENTRYPOINT", "CMD"])
def test_its_process_is_no_child_of_a_shell(name: str) -> None:
    """Which would not pass on SIGTERM."""
    [command] = [rest for each, rest in instructions() if each == name]
    assert all(isinstance(word, str) for word in json.loads(command))


def test_it_can_be_asked_whether_it_is_healthy() -> None:
    [check] = [rest for name, rest in instructions() if name == "HEALTHCHECK"]
    assert "/health/ready" in check


def test_nothing_is_copied_but_the_service() -> None:
    copied = {rest for name, rest in instructions() if name in {"COPY", "ADD"}}
    assert copied == {
        "--from=base / /",
        "--from=build /opt/venv /opt/venv",
        "service service",
        "sql sql",
    }


def test_the_builder_gets_neither_secrets_nor_what_developers_need() -> None:
    assert not [path for path in NOT_SENT if is_sent(path)]
    service = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("service/**/*.py")]
    assert {path for path in service if not is_sent(path)} == {
        path for path in service if path.startswith("service/embedded/")
    }


def test_the_image_of_the_stand_ins_has_what_they_import() -> None:
    """Of what only tests need; the rest is there, because it begins with the service's."""
    command = [sys.executable, "-c", "import sys, tests.stand_ins.__main__; print(*sys.modules)"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    ran = subprocess.run(command, cwd=ROOT, env=plain, check=True, capture_output=True, text=True)
    loaded = ran.stdout
    packages = packages_distributions()
    imported = {name for module in loaded.split() for name in packages.get(module, [])}
    pins = (ROOT / "tests" / "requirements.txt").read_text().splitlines()
    [pattern] = re.findall(r"grep -E '(\S+)' tests/requirements", (ROOT / "Dockerfile").read_text())
    assert {pin.partition("==")[0] for pin in pins if re.match(pattern, pin)} == {
        pin.partition("==")[0] for pin in pins if pin.partition("==")[0] in imported
    }
