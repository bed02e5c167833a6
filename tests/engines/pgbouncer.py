"""PgBouncer, which lets many clients share few connections to PostgreSQL."""

from collections.abc import Mapping
from pathlib import Path

from tests.engines.machines import Machine, Server, program
from tests.engines.standbys import account


def pgbouncer(
    machine: Machine,
    port: int,
    target: Mapping[str, object],
    folder: Path,
    *,
    pool_size: int,
    name: str = "pgbouncer",
) -> Server:
    """Return one in transaction mode, not started; raise Missing.

    `target` has PostgreSQL's host, port and user.
    """
    file = folder / f"{name}.ini"
    file.write_text(f"""\
[databases]
* = host={target["host"]} port={target["port"]} user={target["user"]}

[pgbouncer]
listen_addr = {machine.address}
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 500
server_connect_timeout = 1
server_login_retry = 0.2
query_wait_timeout = 2
""")
    file.chmod(0o644)
    command = [program("pgbouncer"), "-q", str(file)]
    return Server(machine, command, folder / f"{name}.log", user=account())
