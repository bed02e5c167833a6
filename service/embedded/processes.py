"""A server as a child process: started, awaited, stopped, and never orphaned."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL, Signals

from service.embedded.errors import EmbeddedServerError
from service.embedded.folders import let_through

START_SECONDS = 60  # as after a crash PostgreSQL first replays its journal
STOP_SECONDS = 2
LOG_BYTES = 1_000_000
LAST_LINES = 8

PR_SET_PDEATHSIG = 1
# Loaded here, as the forked child must do as little as possible.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@contextmanager
def child(
    command: list[str], *, folder: Path, log: Path, stop_signal: Signals
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command in the folder, as the folder's owner, and stop it at the end."""
    owner = folder.stat()
    as_other = os.geteuid() == 0 and owner.st_uid != 0
    let_through(owner.st_uid, folder)
    let_through(owner.st_uid, Path(command[0]))
    if log.exists() and log.stat().st_size > LOG_BYTES:
        os.truncate(log, 0)
    end_with_parent = partial(_end_with_parent, os.getpid(), stop_signal) if _libc else None
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - the command is our own
            command,
            cwd=folder,
            # Not the caller's: PGPORT, for example, would change the server.
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C is for the parent, which then stops its servers in order.
            start_new_session=True,
            user=owner.st_uid if as_other else None,
            group=owner.st_gid if as_other else None,
            extra_groups=[] if as_other else None,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - see the package: no threads yet
        )
    try:
        yield process
    finally:
        process.send_signal(stop_signal)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with_parent(parent: int, stop_signal: Signals) -> None:
    """Have the kernel stop this new child when its parent is killed. Runs between fork and exec."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, stop_signal)
        if os.getppid() != parent:
            os._exit(1)


def wait_until_ready(
    name: str, process: subprocess.Popen[bytes], log: Path, is_ready: Callable[[], bool]
) -> None:
    """Return once the server is ready; raise EmbeddedServerError if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        if process.poll() is not None:
            raise failure(f"{name} ended while it started, with status {process.returncode}", log)
        if time.monotonic() > deadline:
            raise failure(f"{name} was not ready after {START_SECONDS} seconds", log)
        time.sleep(0.01)


def failure(what: str, log: Path) -> EmbeddedServerError:
    """Return the error that says what happened and how the log ends."""
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return EmbeddedServerError("\n".join([f"{what}; {log} ends with:", *lines]))


def stop_orphan(pid_file: Path, mark: str, stop_signal: Signals) -> None:
    """Stop the server in the pid file if it outlived its parent.

    The number may by now be another process, so its command line must have the mark.
    """
    pid = _read_pid(pid_file)
    deadline = time.monotonic() + STOP_SECONDS
    while pid and mark in _command_line(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, stop_signal if time.monotonic() < deadline else SIGKILL)
        time.sleep(0.05)


def _read_pid(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text().split("\n")[0])
    except (FileNotFoundError, ValueError):
        return None


def _command_line(pid: int) -> str:
    """Return the command line of a process, or nothing if there is no such process."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(ps, capture_output=True, text=True, check=False).stdout  # noqa: S603
