"""One run: a service under load, a fault that strikes, and the verdict on what its clients saw."""

import asyncio
import os
import random
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Final

import asyncpg

from tests.e2e.processes import COMMAND, LOOPBACK, ROOT, free_port, started, status_of
from tests.e2e.processes import run as run_command
from tests.engines import killable
from tests.engines.killable import Engine
from tests.factories import new_secrets
from tests.faults import conversion_judge, ledger_judge, webhook_judge
from tests.faults.conversions import SCOPES, Conversions
from tests.faults.faults import STALE_SECONDS, Fault, World
from tests.faults.history import History
from tests.faults.judge import judge, wrong_now
from tests.faults.load import Load, Tally, Wire
from tests.faults.webhooks import UnreliableReceiver, Webhooks

CLIENTS: Final = 12
REPORTING: Final = 16
"""How many clients of a company report at once what its users do."""
REPORTING_ALONE: Final = 28
"""How many there are when hardly anything else is asked, so that a run has many conversions."""
WORKERS: Final = 3
WARM_UP_SECONDS: Final = 1.0
RECOVERY_SECONDS: Final = 20.0
"""Within these the service is ready again, with no job and no due reward left, or never."""
LOOKS: Final = 5
"""How often codes are looked at until the newest referrals are, which takes longer."""
SHORTEST_PAUSE: Final = 0.05
"""Seconds between two looks."""
PAUSE: Final = 4
"""How many times as long as the look before it a pause is, however much there is to look at."""
CLOCKS_OFF: Final = timedelta(hours=1, seconds=1)
"""How far a machine's clock is off at most, where clocks are moved."""
FAKETIME: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
UNHANDLED: Final = (
    "unhandled error",
    "background task crashed",
    "worker failed",
    "was answered 500",
)
"""Words of the service's log, or of a complaint, that stand for an exception nobody caught."""
# What sweeps release, however far their clocks are behind.
DUE: Final = """
    SELECT count(*)
      FROM rewards
     WHERE state = 'pending'
       AND NOT held
       AND available_at <= clock_timestamp() - $1::interval
"""


class Skipped(Exception):
    """Why a fault cannot strike on this machine."""


@dataclass(frozen=True)
class Scenario:
    """A fault, and the service that it strikes."""

    fault: Fault
    ways: bool = False
    """Whether the service reaches its servers through proxies that can break."""
    environment: Mapping[str, str] = field(default_factory=dict)
    small_disk: bool = False
    movable_clocks: bool = False
    """Whether there are two machines, each with a clock of its own, instead of several workers."""
    durable: bool = True
    run_id: str | None = None
    """With `ways`, what Valkey's run id looks like to the service, also after a restart."""

    @property
    def clocks_off(self) -> timedelta:
        """How far the service's clocks may be off."""
        return CLOCKS_OFF if self.movable_clocks else timedelta()

    @property
    def name(self) -> str:
        return self.fault.__name__.replace("_", " ")


@dataclass
class Verdict:
    """What a run came to."""

    tally: Tally
    violations: list[str]
    begun: float
    ended: float


async def run(
    scenario: Scenario,
    seed: int,
    seconds: float,
    *,
    command: Sequence[str] = COMMAND,
    sql: str = "",
    only_conversions: bool = False,
) -> Verdict:
    """Run the service under load while the fault strikes for about `seconds`.

    `command` starts the service; `sql` is run on the migrated database first; with
    `only_conversions` a single client does what has nothing to do with them. Raises Skipped.
    """
    rng = random.Random(f"{seed} {scenario.name}")
    history = History()
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(_folder(small=scenario.small_disk))
        postgresql = await stack.enter_async_context(
            _running(killable.postgresql(folder, durable=scenario.durable))
        )
        valkey = await stack.enter_async_context(_running(killable.valkey(folder)))
        to_postgresql = await stack.enter_async_context(
            killable.way_to(killable.socket_of(postgresql.url), rng)
        )
        to_valkey = await stack.enter_async_context(killable.way_to(valkey.url, rng))
        environment = {
            **new_secrets(),
            "DATABASE_URL": postgresql.url,
            "REDIS_URL": valkey.url,
            "HOST": LOOPBACK,
            "PORT": str(free_port()),
            "WORKERS": str(WORKERS),
            "ARGON2_MEMORY_KIB": "64",
            "ARGON2_PASSES": "1",
            "RATE_LIMIT_REGISTER": "off",
            "RATE_LIMIT_LOGIN": "off",
            "RATE_LIMIT_LOOKUP": "off",
            "RATE_LIMIT_WRITE": "off",
            "WEBHOOK_NETWORKS": "127.0.0.0/8",
            "LOG_LEVEL": "warning",
            **scenario.environment,
        }
        to_valkey.run_id = scenario.run_id
        await asyncio.to_thread(_migrate, environment)
        if sql:
            connection = await asyncpg.connect(postgresql.url)
            await connection.execute(sql)
            await connection.close()
        if scenario.ways:
            _, _, address = to_postgresql.url.partition("://")
            environment["DATABASE_URL"] = (
                f"postgresql://postgres@{address}/postgres?sslmode=disable"
            )
            environment["REDIS_URL"] = to_valkey.url
        log = stack.enter_context((folder / "service.log").open("w"))
        receiver = UnreliableReceiver(random.Random(rng.random()))
        await stack.enter_async_context(receiver.serving())
        machines = [environment]
        if scenario.movable_clocks:
            machines = [
                {**environment, "WORKERS": "1", "PORT": str(free_port()), **_movable_clock(clock)}
                for clock in _clocks(folder)
            ]
        with ExitStack() as services:
            serve = [*command, "serve"]
            processes = [
                services.enter_context(started(serve, machine, cwd=ROOT, stderr=log))
                for machine in machines
            ]
            urls = [f"http://{LOOPBACK}:{machine['PORT']}" for machine in machines]
            for url in urls:
                await _ready(url)
            world = World(
                rng=rng,
                history=history,
                postgresql=postgresql,
                valkey=valkey,
                to_postgresql=to_postgresql,
                to_valkey=to_valkey,
                service=processes[0].pid,
                database_url=postgresql.url,
                folder=folder,
                seconds=seconds,
            )
            wire = Wire(urls, history, rng)
            client = await _new_client(environment)
            load, conversions = Load(wire), Conversions(wire, *client)
            webhooks = Webhooks(wire, receiver, *client)
            await webhooks.listen()
            await load.prepare()
            await conversions.prepare()
            begun = monotonic()
            async with _watched(postgresql.url, history, scenario.clocks_off):
                clients = (1, REPORTING_ALONE) if only_conversions else (CLIENTS, REPORTING)
                await _under_load(scenario.fault, world, load, conversions, clients)
            ended = monotonic()
            await _calm(urls, postgresql.url, history, scenario.clocks_off)
            await load.look_at_all()
            await conversions.repeat(REPORTING)
            await webhooks.settle(postgresql.url)
        history.complaints += [
            line
            for line in (folder / "service.log").read_text().splitlines()
            if any(words in line for words in UNHANDLED)
        ]
        connection = await asyncpg.connect(postgresql.url)
        violations = [
            *await judge(history, connection),
            *await conversion_judge.judge(history.calls, connection),
            *await ledger_judge.wrong_at_last(connection, scenario.clocks_off),
            *await _wrong_ledger(environment),
            *await webhook_judge.judge(webhooks, connection),
        ]
        await connection.close()
        return Verdict(wire.tally, violations, begun, ended)


def _migrate(environment: Mapping[str, str]) -> None:
    command, whole = [*COMMAND, "migrate"], {**os.environ, **environment}
    subprocess.run(command, env=whole, cwd=ROOT, check=True, capture_output=True)


async def _new_client(environment: Mapping[str, str]) -> tuple[str, str]:
    """Make the client of a company, as operators do; return its id and its secret."""
    options = ["--confidential", "--scope", SCOPES]
    made = await asyncio.to_thread(
        run_command, "clients", "create", "Shop", *options, environment=environment
    )
    assert made.returncode == 0, made
    found = dict(line.split("=", 1) for line in made.stdout.splitlines() if "=" in line)
    return found["client_id"], found["client_secret"]


async def _wrong_ledger(environment: Mapping[str, str]) -> list[str]:
    """Have the ledger prove itself, as operators do; return what it says if it cannot."""
    checked = await asyncio.to_thread(run_command, "ledger", "check", environment=environment)
    if checked.returncode == 0:
        return []
    return [f"ledger check: {checked.stdout}{checked.stderr}"]


async def _under_load(
    fault: Fault, world: World, load: Load, conversions: Conversions, clients: tuple[int, int]
) -> None:
    running = asyncio.gather(load.run(clients[0]), conversions.run(clients[1]))
    await asyncio.sleep(WARM_UP_SECONDS)
    await fault(world)
    await asyncio.sleep(STALE_SECONDS + 1)
    load.stop()
    conversions.stop()
    await running


async def _calm(
    urls: list[str], database_url: str, history: History, clocks_off: timedelta
) -> None:
    """Wait until the service is ready and nothing is left to do; complain if that never is.

    Webhooks apart, which may have to wait for longer than anybody wants to.
    """
    connection = await asyncpg.connect(database_url)
    deadline = monotonic() + RECOVERY_SECONDS
    while True:
        ready = all([await _is_ready(url) for url in urls])
        jobs = await connection.fetchval("SELECT count(*) FROM jobs WHERE kind <> 'delivery'")
        due = await connection.fetchval(DUE, clocks_off)
        if ready and not jobs and not due:
            break
        if monotonic() > deadline:
            left = f"{jobs} jobs and {due} rewards are left"
            history.complaints.append(f"no recovery: ready {ready}, {left}")
            break
        await asyncio.sleep(0.1)
    await connection.close()


async def _ready(url: str) -> None:
    deadline = monotonic() + RECOVERY_SECONDS
    while not await _is_ready(url):
        assert monotonic() < deadline, "the service does not start"
        await asyncio.sleep(0.05)


async def _is_ready(url: str) -> bool:
    return await asyncio.to_thread(status_of, f"{url}/health/ready") == 200


@asynccontextmanager
async def _watched(
    database_url: str, history: History, clocks_off: timedelta
) -> AsyncIterator[None]:
    """Look all the while whether anything holds in PostgreSQL that may hold at no instant."""

    async def watch() -> None:
        while not history.complaints:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await asyncpg.connect(database_url, timeout=2, command_timeout=2)
                try:
                    while not history.complaints:
                        begun = monotonic()
                        history.complaints += await ledger_judge.wrong_now(connection, clocks_off)
                        history.complaints += await webhook_judge.wrong_now(connection)
                        for _ in range(LOOKS):
                            history.complaints += await wrong_now(connection)
                            await asyncio.sleep(max(SHORTEST_PAUSE, PAUSE * (monotonic() - begun)))
                            begun = monotonic()
                finally:
                    connection.terminate()
            await asyncio.sleep(0.2)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def _running(engine: Engine) -> AsyncIterator[Engine]:
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()
        engine.close()


@contextmanager
def _folder(*, small: bool) -> Iterator[Path]:
    """Yield a folder for the servers; a small one is a file system of its own."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        if small:
            if os.geteuid() != 0:
                raise Skipped("only root can mount a small disk")
            command = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)]
            mounted = subprocess.run(command, capture_output=True, text=True)
            if mounted.returncode:
                raise Skipped(f"no small disk: {mounted.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", str(folder)], check=True)
        yield folder


def _clocks(folder: Path) -> list[Path]:
    """Return the files that say how far the clocks of two machines are off."""
    if not FAKETIME.exists():
        raise Skipped("libfaketime is not installed (Debian: faketime)")
    clocks = [folder / "clock-0", folder / "clock-1"]
    for clock in clocks:
        clock.write_text("+0")
    return clocks


def _movable_clock(clock: Path) -> dict[str, str]:
    """Return the environment of a process that reads the file whenever it asks for the time."""
    return {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
