"""Where HOST makes the service listen, and that the image's health check finds it there."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.domain.operators import OperatorError
from service.server.listeners import listen
from tests.e2e.processes import COMMAND, LOOPBACK, ROOT, free_port, run, started, wait_until


def listens_on(address: str) -> bool:
    """Whether this machine has the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not listens_on("::1"), reason="this machine has no IPv6")


def answer_at(address: str, port: int) -> int | None:
    """Return the status that /health/live has there; None where nobody listens."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return int(connection.recv(65536).split()[1])
    except OSError:
        return None


@contextmanager
def serving(environment: Mapping[str, str], host: str, workers: str) -> Iterator[int]:
    """Run the service there; yield its port."""
    port = free_port()
    told = {**environment, "HOST": host, "PORT": str(port), "WORKERS": workers}
    with started([*COMMAND, "serve"], told) as process:

        def is_healthy() -> bool:
            assert process.poll() is None, f"ended with {process.poll()}"
            return health_check(told).returncode == 0

        wait_until(is_healthy, f"the image's health check finds nobody at {host}")
        yield port


def health_check(environment: Mapping[str, str]) -> "subprocess.CompletedProcess[bytes]":
    """Run the command that the Dockerfile has for it, in that environment."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    found = re.search(r"^HEALTHCHECK .*CMD\s+(\[.*\])$", text, re.MULTILINE)
    assert found is not None
    python, *arguments = json.loads(found[1])
    assert python == "python"
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "ENV_FILE": os.devnull, **environment},
        capture_output=True,
        timeout=10,
    )


EVERY = {"127.0.0.1", "127.0.0.2", "::1"}


@needs_ipv6
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("host", "heard"),
    [
        ("::", EVERY),
        ("[::]", EVERY),
        ("0.0.0.0", {"127.0.0.1", "127.0.0.2"}),
        ("0.0.0.0,::", EVERY),
        (":: , 0.0.0.0", EVERY),
        ("::,127.0.0.2", {"::1", "127.0.0.2"}),
        ("0.0.0.0,127.0.0.1", {"127.0.0.1", "127.0.0.2"}),
        ("127.0.0.1,::1", {"127.0.0.1", "::1"}),
        ("127.0.0.1,127.0.0.2,127.0.0.1", {"127.0.0.1", "127.0.0.2"}),
        ("127.0.0.2", {"127.0.0.2"}),
        ("::1", {"::1"}),
    ],
)
def test_it_listens_on_each_address_of_each_host_and_on_no_other(
    environment: dict[str, str], host: str, heard: set[str], workers: str
) -> None:
    with serving(environment, host, workers) as port:
        # Each worker has sockets of its own: the kernel chooses among them.
        for _ in range(8):
            assert {address for address in EVERY if answer_at(address, port) == 200} == heard


def test_the_log_says_where_it_listens_and_for_which_address(
    environment: dict[str, str], tmp_path: Path
) -> None:
    port, host = free_port(), "127.0.0.1,127.0.0.2"
    told = {**environment, "HOST": host, "PORT": str(port), "PUBLIC_URL": "https://a.example"}
    line = f"listening on 127.0.0.1:{port}, 127.0.0.2:{port} for https://a.example"
    with (
        (tmp_path / "log").open("w+") as log,
        started([*COMMAND, "serve"], told | {"WORKERS": "1"}, stderr=log),
    ):
        wait_until(lambda: line in (tmp_path / "log").read_text(), "nothing is said")


def resolving_to(*addresses: str) -> Callable[..., list[Any]]:
    """Return what takes getaddrinfo's place for a name that stands for these addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
    return lambda *_, **__: found


def test_a_name_stands_for_all_its_addresses_that_this_machine_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`localhost` is ::1 as well, also where IPv6 is off."""
    addresses = ("127.0.0.1", "198.51.100.77", "127.0.0.2", "127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to(*addresses))
    [listeners] = listen("name", 0, 1)
    names = [listener.getsockname()[0] for listener in listeners]
    for listener in listeners:
        listener.close()
    assert names == ["127.0.0.1", "127.0.0.2"]
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("198.51.100.77", "198.51.100.78"))
    with pytest.raises(OperatorError, match=r"^Cannot listen on name:0: Cannot assign"):
        listen("name", 0, 1)


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("nowhere.invalid", r"Cannot listen on nowhere\.invalid:{port}: .+\."),
        ("127.0.0.1,nowhere.invalid", r"Cannot listen on nowhere\.invalid:{port}: .+\."),
        ("198.51.100.77", r"Cannot listen on 198\.51\.100\.77:{port}: Cannot assign .+\."),
        ("2001:db8::1", r"Cannot listen on \[2001:db8::1\]:{port}: .+\."),
        ("a..b", r"Cannot listen on a\.\.b:{port}: .+\."),
        ("\u2603" * 70, r"Cannot listen on .+: .+\."),
        ("127.0.0.1:80", r"Cannot listen on .*127\.0\.0\.1:80.*: .+\."),
        (",", r"HOST names no address to listen on\."),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_cannot_be_listened_on_is_one_line(
    environment: dict[str, str], host: str, line: str, workers: str
) -> None:
    port = free_port()
    told = {**environment, "HOST": host, "PORT": str(port), "WORKERS": workers}
    done = run("serve", environment=told)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"{line.format(port=port)}\n", done.stderr)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken_at_one_of_the_hosts_is_one_line(
    environment: dict[str, str], workers: str
) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        told = {**environment, "HOST": "127.0.0.1,127.0.0.2", "PORT": str(port)}
        done = run("serve", environment=told | {"WORKERS": workers})
    assert done.returncode == 1
    assert done.stderr == f"Cannot listen on 127.0.0.2:{port}: Address already in use.\n"


def test_the_health_check_fails_where_nobody_is_ready_and_goes_through_no_proxy(
    environment: dict[str, str], tmp_path: Path
) -> None:
    port = str(free_port())
    assert health_check({"HOST": LOOPBACK, "PORT": port}).returncode == 1
    with serving(environment, LOOPBACK, "1") as served:
        file = tmp_path / "env"
        file.write_text(f"PORT={served}\n")
        proxied = {"http_proxy": f"http://{LOOPBACK}:{port}", "ENV_FILE": str(file)}
        assert health_check(proxied).returncode == 0
    away = {**environment, "DATABASE_URL": "postgresql://127.0.0.1:1/x", "PORT": port}
    with started([*COMMAND, "serve"], {**away, "HOST": LOOPBACK, "WORKERS": "1"}):
        wait_until(lambda: answer_at(LOOPBACK, int(port)) == 200, "nobody listens")
        assert health_check({"HOST": LOOPBACK, "PORT": port}).returncode == 1
