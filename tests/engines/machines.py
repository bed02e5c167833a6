"""Machines: network namespaces with a cable each to one switch, or this machine's loopback."""

import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.engines.killable import children_of

NEW_NETWORK: Final = 0x40000000
"""CLONE_NEWNET of setns(2)."""
START_SECONDS: Final = 30
_numbers = itertools.count(1)


class Missing(Exception):
    """What this machine lacks for a run, in one sentence."""


@dataclass(frozen=True)
class Machine:
    """Where a server runs. Without a namespace it is this machine."""

    address: str
    namespace: str | None = None

    def unplug(self) -> None:
        """Cut its cable: nothing is refused, nothing arrives."""
        _ip("-n", str(self.namespace), "link", "set", "cable", "down")

    def plug_in(self) -> None:
        _ip("-n", str(self.namespace), "link", "set", "cable", "up")


class Server:
    """A process on a machine, which can be started again."""

    def __init__(
        self,
        machine: Machine,
        command: list[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        user: tuple[int, int] | None = None,
    ) -> None:
        self.machine = machine
        self._command = on(machine, command, user)
        self._log = log
        self._environment = {**os.environ, **(environment or {})}
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds; fail with its log if that takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            assert self._started.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < deadline, self._log.read_text()[-2000:]
            time.sleep(0.05)

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._started.send_signal(number)

    def wait(self, seconds: float = 20) -> int:
        """Wait until it has ended; return its status."""
        return self._started.wait(seconds)

    def suspend(self) -> None:
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it and all that it started, unless it has ended."""
        if self.process is not None and self.process.poll() is None:
            self._send(signal.SIGKILL)
            self.process.wait()

    @property
    def _started(self) -> "subprocess.Popen[bytes]":
        assert self.process is not None
        return self.process

    def _send(self, number: signal.Signals) -> None:
        for pid in _tree(self._started.pid):  # the parent first, or it would start new ones
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _tree(pid: int) -> list[int]:
    return [pid, *(below for child in children_of(pid) for below in _tree(child))]


def on(machine: Machine, command: list[str], user: tuple[int, int] | None = None) -> list[str]:
    """Return the command that runs the other on the machine, as the user if one is given."""
    if user is not None and os.geteuid() == 0:
        command = [
            _found("setpriv"),
            f"--reuid={user[0]}",
            f"--regid={user[1]}",
            "--clear-groups",
            *command,
        ]
    if machine.namespace is not None:
        command = [_found("ip"), "netns", "exec", machine.namespace, *command]
    return command


@contextmanager
def network(names: list[str]) -> Iterator[dict[str, Machine]]:
    """Yield machines of these names that reach each other, and put this thread on the last.

    Sockets that this thread, or one started by it, opens from now on are that machine's. Needs
    root; raises Missing.
    """
    if os.geteuid() != 0:
        raise Missing("network namespaces need root")
    prefix = f"nodes-{os.getpid()}-{next(_numbers)}"
    switch = f"{prefix}-switch"
    made: list[str] = []
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _namespace(switch, made)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        machines = {}
        for number, name in enumerate(names, start=10):
            machine = Machine(f"10.77.0.{number}", f"{prefix}-{name}")
            _namespace(str(machine.namespace), made)
            _cable(machine, switch, name)
            machines[name] = machine
        _move_to(Path(f"/run/netns/{prefix}-{names[-1]}"))
        yield machines
    finally:
        _setns(home)
        os.close(home)
        for name in reversed(made):
            _ip("netns", "delete", name)


def _namespace(name: str, made: list[str]) -> None:
    _ip("netns", "add", name)
    made.append(name)
    _ip("-n", name, "link", "set", "lo", "up")


def _cable(machine: Machine, switch: str, name: str) -> None:
    there = str(machine.namespace)
    _ip("-n", switch, "link", "add", name, "type", "veth", "peer", "cable", "netns", there)
    _ip("-n", switch, "link", "set", name, "master", "switch", "up")
    _ip("-n", there, "address", "add", f"{machine.address}/24", "dev", "cable")
    _ip("-n", there, "link", "set", "cable", "up")


def _move_to(namespace: Path) -> None:
    handle = os.open(namespace, os.O_RDONLY)
    try:
        _setns(handle)
    finally:
        os.close(handle)


def _setns(handle: int) -> None:
    # os.setns is there from Python 3.12 on.
    if ctypes.CDLL(None, use_errno=True).setns(handle, NEW_NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> None:
    done = subprocess.run([_found("ip"), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _found(program: str) -> str:
    """Return where the program is; raise Missing, with the Debian package that has it."""
    packages = {"ip": "iproute2", "setpriv": "util-linux"}
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{program} is not installed (Debian: {packages.get(program, program)})")
    return found


def program(name: str) -> str:
    """Return where a program is; raise Missing."""
    return _found(name)
