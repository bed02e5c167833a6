"""`python -m tests.faults.nodes`: the service on several machines, each a network namespace.

Three nodes of the service behind HAProxy, a PostgreSQL primary with two synchronous standbys, each
behind a PgBouncer of its own, and three Valkeys watched by sentinels. Clients do what `make faults`
has them do while primaries are killed and cut off, and nodes replaced by those of a newer version;
what they were told is judged by the same checker.
"""

import argparse
import asyncio
import http.client
import itertools
import json
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

import asyncpg
import psycopg

from tests.e2e.processes import COMMAND, ROOT, status_of
from tests.engines.machines import Machine, Missing, Server, network, program
from tests.engines.pgbouncer import pgbouncer
from tests.engines.standbys import PORT, PostgreSQL, folder_for_servers, furthest
from tests.engines.valkeys import Valkey, Watched, until, watched
from tests.factories import new_secrets
from tests.faults.faults import JUST_BEFORE, STALE_SECONDS
from tests.faults.history import History, Kind, Window
from tests.faults.judge import judge
from tests.faults.load import Load, Wire

DATABASES: Final = ("db1", "db2", "db3")
NODES: Final = ("node1", "node2", "node3")
VALKEYS: Final = [f"valkey{number}" for number in range(1, 4)]
MACHINES: Final = [*DATABASES, *NODES, *VALKEYS, "front", "clients"]
VALKEY_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
VALKEY_TIMEOUT: Final = 2000
"""down-after-milliseconds."""
POOLER_PORT: Final = 6432
CLIENTS: Final = 6
WRITES: Final[tuple[Kind, ...]] = ("create", "replace", "delete", "register")
WRITES_BACK_SECONDS: Final = 10.0
SETTLING_SECONDS: Final = 20.0
CALM_SECONDS: Final = 4.0
"""How long the load runs before, between and after what happens to it."""
SYNCHRONOUS: Final = {"synchronous_standby_names": f"ANY 1 ({', '.join(DATABASES)})"}
"""Have the primary answer a commit when one standby has it too."""
JOB_TRIES: Final = "sql/migrations/0009_job_tries.sql"
"""The old version of the upgrade is the last one that did not have this migration."""
LAG_SECONDS: Final = 1.5
STEP_SECONDS: Final = 0.25
"""The length of the windows that allow look-ups to be STALE_SECONDS late at any time."""
SHUTDOWN_DELAY_SECONDS: Final = 2
"""Longer than HAProxy takes to notice: two checks."""
HAPROXY: Final = """\
global
    stats socket {socket} mode 600 level admin

defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    retries 0

frontend front
    bind {address}:80
    default_backend nodes

backend nodes
    option httpchk GET /health/ready
    default-server inter 300ms fall 2 rise 1
"""


@dataclass
class World:
    """All machines with what runs on them."""

    machines: dict[str, Machine]
    folder: Path
    databases: list[PostgreSQL]
    synchronous: Mapping[str, str]
    valkeys: Watched
    lone_valkey: Valkey
    nodes: dict[str, Server] = field(default_factory=dict)
    history: History = field(default_factory=History)

    @property
    def front(self) -> str:
        return f"http://{self.machines['front'].address}"

    def url(self, kind: str, port: int = POOLER_PORT) -> str:
        hosts = ",".join(f"{each.machine.address}:{port}" for each in self.databases)
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs={kind}"

    def primary(self) -> PostgreSQL:
        [primary] = [each for each in self.databases if not is_standby(each)]
        return primary


def is_standby(server: PostgreSQL) -> bool:
    """Whether it is one, or is not there."""
    try:
        return bool(server.ask("SELECT pg_is_in_recovery()"))
    except psycopg.OperationalError:
        return True


@contextmanager
def world(synchronous: Mapping[str, str]) -> Iterator[World]:
    """Build everything but the nodes; raise Missing. Nothing is left running or mounted."""
    program("haproxy")
    program("pgbouncer")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes-")))
        machines = stack.enter_context(network(MACHINES))
        servers = folder_for_servers(folder / "servers")
        databases = [PostgreSQL(name, machines[name], servers) for name in DATABASES]
        valkeys = watched(
            [(machines[name], VALKEY_PORT) for name in VALKEYS],
            [(machines[name], SENTINEL_PORT) for name in VALKEYS],
            servers,
            down_after=VALKEY_TIMEOUT,
        )
        lone_valkey = Valkey("valkey", machines["front"], VALKEY_PORT, servers, 'save ""')
        built = World(machines, servers, databases, synchronous, valkeys, lone_valkey)
        for server in databases:
            stack.callback(server.kill)
        _start_databases(databases, synchronous)
        for server in databases:
            target = {"host": server.machine.address, "port": PORT, "user": "postgres"}
            pooler = pgbouncer(
                server.machine,
                POOLER_PORT,
                target,
                servers,
                pool_size=20,
                name=f"{server.name}-pgbouncer",
            )
            stack.callback(pooler.kill)
            pooler.start()
        for other in (*valkeys.servers, *valkeys.sentinels, lone_valkey, _haproxy(built)):
            stack.callback(other.kill)
            other.start()
        until(valkeys.is_whole)
        try:
            yield built
        finally:
            for node in built.nodes.values():
                node.kill()


def _start_databases(databases: list[PostgreSQL], synchronous: Mapping[str, str]) -> None:
    first, *others = databases
    first.initialise()
    first.start()  # alone: it would wait for standbys otherwise
    for other in others:
        other.copy(first, databases)
        other.start(**synchronous)
    first.stop()
    first.start(**synchronous)


def _haproxy(built: World) -> Server:
    file = built.folder / "haproxy.cfg"
    machine = built.machines["front"]
    text = HAPROXY.format(address=machine.address, socket=built.folder / "haproxy.sock")
    for name in NODES:
        text += f"    server {name} {built.machines[name].address}:8080 check\n"
    file.write_text(text)
    return Server(machine, [program("haproxy"), "-f", str(file)], built.folder / "haproxy.log")


def environment_of(built: World) -> dict[str, str]:
    """Return the environment of all nodes."""
    return {
        **new_secrets(),
        "DATABASE_URL": built.url("read-write"),
        "DATABASE_REPLICA_URL": built.url("standby", PORT),
        "DATABASE_PREPARED_STATEMENTS": "off",
        "REDIS_URL": built.valkeys.url(),
        "PORT": "8080",
        "PUBLIC_URL": built.front,
        "WORKERS": "1",
        "ARGON2_MEMORY_KIB": "64",
        "ARGON2_PASSES": "1",
        "RATE_LIMIT_REGISTER": "off",
        "RATE_LIMIT_LOGIN": "off",
        "RATE_LIMIT_LOOKUP": "off",
        "RATE_LIMIT_WRITE": "off",
        "LOG_LEVEL": "warning",
    }


def start_node(built: World, name: str, environment: dict[str, str], project: Path) -> None:
    """Start a node of the service in `project`, and wait until it is ready."""
    machine = built.machines[name]
    log = built.folder / f"{name}.log"
    told = {**environment, "HOST": machine.address}
    node = Server(machine, [*COMMAND, "serve"], log, environment=told, folder=project)
    built.nodes[name] = node
    node.start()
    node.wait_until(lambda: status_of(f"http://{machine.address}:8080/health/ready") == 200)


def migrate(environment: dict[str, str], url: str, project: Path) -> None:
    """Apply the migrations of `project`. Directly, because a pooler takes the lock's session."""
    command = [*COMMAND, "migrate"]
    told = {**environment, "DATABASE_URL": url}
    done = subprocess.run(command, env=told, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- A primary that dies, and one that is cut off -------------------------------------------


async def failover(built: World, seed: int) -> list[str]:
    """Kill primaries, later cut others off, of PostgreSQL and of Valkey; return what went wrong.

    Where the standbys are asynchronous they are late, and something has to go wrong.
    """
    environment = environment_of(built)
    migrate(environment, built.databases[0].url, ROOT)
    for name in NODES:
        start_node(built, name, environment, ROOT)
    async with _under_load(built, seed) as load:
        complaints = []
        for strike in (_kill, _cut_off):
            await asyncio.sleep(CALM_SECONDS)
            old = built.primary()
            standbys = [each for each in built.databases if each is not old]
            if not built.synchronous:
                await _lag(standbys)
            struck = monotonic()
            strike(old)
            for each in standbys:
                each.machine.plug_in()
            await asyncio.sleep(0.5)  # until HAProxy notices
            new = furthest(standbys)
            new.promote()
            back = await _seconds_without_a_write(built, struck)
            window = Window(struck, monotonic() + STALE_SECONDS, struck - JUST_BEFORE)
            built.history.windows.append(window)
            print(f"  {old.name} {strike.__doc__}, {new.name} is promoted", flush=True)
            print(f"  {back:.1f} s without a write", flush=True)
            if back > WRITES_BACK_SECONDS:
                complaints.append(f"no write for {back:.1f} s")
            await asyncio.to_thread(_come_back, old, new, built)
        for strike_valkey in (_kill, _cut_off, built.valkeys.isolate):
            await asyncio.sleep(CALM_SECONDS)
            await _replace_valkey(built, strike_valkey)
        await asyncio.sleep(CALM_SECONDS)
    return complaints + await _verdict(built, load)


def _kill(server: PostgreSQL | Valkey) -> None:
    """is killed"""
    server.kill()


def _cut_off(server: PostgreSQL | Valkey) -> None:
    """is cut off"""
    server.machine.unplug()


async def _replace_valkey(built: World, strike: Callable[[Valkey], None]) -> None:
    """Do something to the primary of Valkey; wait until another is one, and the cache is used."""
    old, *others = built.valkeys.roles()
    struck = monotonic()
    strike(old)
    await asyncio.to_thread(until, lambda: any(map(Valkey.is_primary, others)))
    replaced = monotonic()
    await asyncio.to_thread(until, lambda: _all_use_the_cache(built))
    back = monotonic()
    print(f"  {old.name}: {strike.__doc__}; a replica is the primary", flush=True)
    print(
        f"  {replaced - struck:.1f} s later; the cache used {back - struck:.1f} s later", flush=True
    )
    if strike is _kill:
        old.start()
    elif strike is _cut_off:
        old.machine.plug_in()
    else:
        await asyncio.sleep(CALM_SECONDS)  # while two answer
        built.valkeys.let_back(old)
    await asyncio.to_thread(until, built.valkeys.is_whole)
    await asyncio.to_thread(until, lambda: _all_use_the_cache(built))
    for step in range(int((monotonic() + STALE_SECONDS - struck) / STEP_SECONDS)):
        begin = struck + step * STEP_SECONDS
        since = max(struck - JUST_BEFORE, begin - STALE_SECONDS)
        built.history.windows.append(Window(begin, begin + STEP_SECONDS, since))


def _all_use_the_cache(built: World) -> bool:
    for name in NODES:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(built.machines[name].address, 8080, timeout=1)
            with closing(connection):
                connection.request("GET", "/health/ready")
                if json.load(connection.getresponse())["status"] == "ok":
                    continue
        return False
    return True


def _come_back(old: PostgreSQL, new: PostgreSQL, built: World) -> None:
    """Make the old primary a standby of the new one."""
    old.kill()  # before it can be reached again: there must not be two
    old.machine.plug_in()
    old.copy(new, built.databases)
    old.start(**built.synchronous)


async def _lag(standbys: list[PostgreSQL]) -> None:
    for each in standbys:
        each.machine.unplug()
    await asyncio.sleep(LAG_SECONDS)


async def _seconds_without_a_write(built: World, struck: float) -> float:
    """Return the longest time without a write that changed something, once they are back."""
    while True:
        written = sorted(
            each.ended
            for each in built.history.operations
            if each.kind in WRITES and each.status in {200, 201, 204} and each.ended > struck - 1
        )
        gap = max((b - a for a, b in itertools.pairwise([struck, *written])), default=0.0)
        waited = monotonic() - struck
        # Long enough to be sure that it did not break off once more.
        if (written and written[-1] > struck + gap + 2) or waited > 3 * WRITES_BACK_SECONDS:
            return gap if written else waited
        await asyncio.sleep(0.1)


# --- Another version, node by node ----------------------------------------------------------


async def upgrade(built: World, seed: int) -> list[str]:
    """Replace all nodes by those of the newest version, then by themselves; return all failures."""
    old = _version_without(JOB_TRIES, built.folder / "old")
    first = built.databases[0]
    environment = environment_of(built)
    # All that the old version knows: one PostgreSQL and one Valkey.
    environment |= {"DATABASE_URL": first.url, "DATABASE_PREPARED_STATEMENTS": "on"}
    environment |= {"REDIS_URL": f"redis://{built.lone_valkey.url}"}
    environment |= {"SHUTDOWN_DELAY_SECONDS": str(SHUTDOWN_DELAY_SECONDS)}
    migrate(environment, first.url, old)
    for name in NODES:
        start_node(built, name, environment, old)
    async with _under_load(built, seed) as load:
        await asyncio.sleep(CALM_SECONDS)
        await asyncio.to_thread(migrate, environment, first.url, ROOT)
        print("  the newest migrations are applied", flush=True)
        for name in NODES:
            # The old version does not announce to HAProxy that it is about to end.
            _tell_haproxy(built, f"set server nodes/{name} state drain")
            await asyncio.sleep(1)
            await asyncio.to_thread(_replace, built, name, environment)
            _tell_haproxy(built, f"set server nodes/{name} state ready")
            await asyncio.sleep(1)
        _leave_out_refused_deletions(built.history)
        print(f"  {load.tally.requests} requests; all nodes are of the newest version", flush=True)
        for name in NODES:
            await asyncio.to_thread(_replace, built, name, environment)
            await asyncio.sleep(1)
        print("  all nodes were ended and started again", flush=True)
        await asyncio.sleep(CALM_SECONDS)
    failed = [f"{count} requests failed: {kind}" for kind, count in load.tally.errors.items()]
    return failed + await _verdict(built, load)


def _leave_out_refused_deletions(history: History) -> None:
    """Do not judge the old version for a deletion that found no code beside a replacement."""
    history.operations = [
        each for each in history.operations if (each.kind, each.status) != ("delete", 404)
    ]


def _replace(built: World, name: str, environment: dict[str, str]) -> None:
    node = built.nodes[name]
    node.terminate()
    status = node.wait()
    assert status == 0, f"{name} ended with {status}"
    start_node(built, name, environment, ROOT)


def _version_without(migration: str, folder: Path) -> Path:
    """Put the last version without the migration into the folder; raise Missing."""
    command = ["git", "log", "--diff-filter=A", "--format=%H", "--", migration]
    added = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not added:
        raise Missing("the history of the project is not here")
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", f"{added[-1]}^"], cwd=ROOT, capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def _tell_haproxy(built: World, command: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(built.folder / "haproxy.sock"))
        connection.sendall(f"{command}\n".encode())
        answer = connection.recv(1000).strip()
    assert not answer, answer


@asynccontextmanager
async def _under_load(built: World, seed: int) -> AsyncIterator[Load]:
    await _served(built)
    load = Load(Wire([built.front], built.history, random.Random(seed)))
    await load.prepare()
    clients = asyncio.create_task(load.run(CLIENTS))
    yield load
    load.stop()
    await clients


async def _served(built: World) -> None:
    deadline = monotonic() + SETTLING_SECONDS
    while await asyncio.to_thread(status_of, f"{built.front}/health/ready") != 200:
        assert monotonic() < deadline, (built.folder / "haproxy.log").read_text()
        await asyncio.sleep(0.1)


async def _verdict(built: World, load: Load) -> list[str]:
    """Wait until no job is left, look at everything, and let the checker judge."""
    await _served(built)
    connection = await asyncpg.connect(built.primary().url)
    deadline = monotonic() + SETTLING_SECONDS
    while jobs := await connection.fetchval("SELECT count(*) FROM jobs"):
        if monotonic() > deadline:
            built.history.complaints.append(f"{jobs} jobs are left")
            break
        await asyncio.sleep(0.2)
    await load.look_at_all()
    violations = await judge(built.history, connection)
    await connection.close()
    tally = load.tally
    errors = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.errors.items()))
    print(f"  {tally.requests} requests; errors: {errors or 'none'}", flush=True)
    for name in NODES:
        for line in (built.folder / f"{name}.log").read_text().splitlines():
            if "unhandled error" in line:
                violations.append(f"{name}: {line}")
    return violations


Run = Callable[[World, int], Coroutine[Any, Any, list[str]]]
LONGEST: Final = 600
"""Characters of a violation that are shown."""
RUNS: Final[dict[str, Run]] = {"failover": failover, "upgrade": upgrade}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument(
        "--sabotage", action="store_true", help="let standbys lag: lost writes have to be noticed"
    )
    parser.add_argument("--only", nargs="*", default=[], choices=RUNS, metavar="RUN")
    parsed = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or namespaces would remain
    print(f"seed {parsed.seed}", flush=True)
    only = ["failover"] if parsed.sabotage else parsed.only or RUNS
    runs = {name: run for name, run in RUNS.items() if name in only}
    synchronous = {} if parsed.sabotage else SYNCHRONOUS
    found = [_complaints(name, run, parsed.seed, synchronous) for name, run in runs.items()]
    return not all(found) if parsed.sabotage else any(found)


def _complaints(name: str, run: Run, seed: int, synchronous: Mapping[str, str]) -> list[str]:
    """Do a run, and print what it came to."""
    begun = time.monotonic()
    print(f"{name}:", flush=True)
    try:
        with world(synchronous) as built:
            complaints = asyncio.run(run(built, seed))
    except Missing as missing:
        print(f"  skipped: {missing}")
        return []
    for complaint in complaints[:10]:
        print(f"  VIOLATION {complaint[:LONGEST]}")
    print(f"  {len(complaints)} violations, {time.monotonic() - begun:.0f} s", flush=True)
    return complaints


if __name__ == "__main__":
    sys.exit(main())
