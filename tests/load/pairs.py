"""What takes turns: the control, the service, and another checkout's service."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.e2e.processes import ROOT
from tests.load import report, servers, workloads, wrk
from tests.load.report import CONTROL, NEW, OLD, Row
from tests.load.servers import Data, Secrets, Server
from tests.load.workloads import Request

FOREIGN: Final = 0.08
"""A share of the machine. A pair in which other processes took more is measured again."""
ANSWER_BYTES: Final = 115
"""As long as the answer to a look-up."""
Workload = Callable[[workloads.Token], list[Request]]


@dataclass
class Bench:
    """What all measurements need."""

    data: Data
    secrets: Secrets
    folder: Path
    pairs: int
    seconds: float
    against: Path | None = None
    """Another checkout of the project, whose service takes turns too."""
    tries: int = 4
    """Rounds for each pair that is wanted, at most."""
    warmed: float = 1.2
    """How often each request is sent before anything is measured, at least."""
    refused: float = 0.01
    """How far the share of refused requests may be from what a workload expects."""
    requests_before_memory: int = 1_000_000
    starts: int = 5
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def pair(self, redis_url: str | None = None, **settings: str) -> Iterator["Pair"]:
        """Run the control and the service, or both services."""
        environment = {
            **self.secrets.environment,
            "DATABASE_URL": self.data.database_url,
            "REDIS_URL": redis_url or self.data.redis_url,
            **settings,
        }
        with ExitStack() as stack:
            control = servers.control(ANSWER_BYTES, self.folder / "control.log")
            running = {CONTROL: stack.enter_context(control)}
            if self.against is not None:
                # A database of its own: the two may keep different things under one key.
                cache = redis_url or f"{self.data.redis_url}?db=1"
                old = servers.service(
                    {**environment, "REDIS_URL": cache}, self.folder / "old.log", self.against
                )
                running[OLD] = stack.enter_context(old)
            new = servers.service(environment, self.folder / "service.log", ROOT)
            running[NEW] = stack.enter_context(new)
            yield Pair(self, running)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(report.line(row), flush=True)


@dataclass
class Pair:
    """The running servers, by name."""

    bench: Bench
    servers: dict[str, Server]
    sent: int = 0
    """Requests to the new service until now."""

    @property
    def service(self) -> Server:
        return self.servers[NEW]

    @property
    def services(self) -> list[str]:
        return [name for name in self.servers if name != CONTROL]

    def turns(self, attempt: int) -> list[str]:
        """Return all names, in an order that changes from attempt to attempt."""
        names = list(self.servers)
        return names if attempt % 2 == 0 else names[::-1]

    def requests(self, workload: Workload, name: str = NEW) -> list[Request]:
        url = self.servers[name].url
        return workload(lambda number: f"Bearer {self.bench.secrets.access_token(url, number)}")

    def file(self, name: str, workload: Workload) -> Path:
        """Write the requests to a server as wrk reads them."""
        file = self.bench.folder / f"{name}.requests"
        file.write_text(workloads.to_file(self.requests(workload, name)))
        return file

    def load(
        self, name: str, file: Path, seconds: float, mark: int = 0, connections: int = 64
    ) -> wrk.Round:
        done = wrk.run(
            self.servers[name], self.bench.data, file, seconds, connections=connections, mark=mark
        )
        if name == NEW:
            self.sent += done.requests
        return done

    def warm_up(self, name: str, file: Path) -> None:
        """Send each request once or more, to fill every cache; with --smoke, for a moment."""
        enough, sent = len(file.read_text().splitlines()) * self.bench.warmed, 0
        while not sent or sent < enough:
            sent += self.load(name, file, min(2, 2 * self.bench.seconds), sent).requests

    def measure(
        self, row: Row, workload: Workload, *, refused: float, prepare: Callable[[], None] | None
    ) -> None:
        """Add the ratios of clean pairs to the row. `refused` is the share of answers over 399."""
        files = {name: self.file(name, workload) for name in self.services}
        for name, file in files.items():
            if prepare is not None:
                prepare()
            self.warm_up(name, file)
        files[CONTROL] = self.file(CONTROL, workloads.look_ups)
        self.load(CONTROL, files[CONTROL], 1)
        for attempt in range(self.bench.pairs * self.bench.tries):
            # No mark of the warming up, so that no number comes again.
            mark = 0 if prepare is not None else (attempt + 1) * 7919
            rounds = {}
            for name in self.turns(attempt):
                if prepare is not None:
                    prepare()
                done = rounds[name] = self.load(name, files[name], self.bench.seconds, mark)
                if (
                    name != CONTROL
                    and abs(done.refused / done.requests - refused) > self.bench.refused
                ):
                    raise RuntimeError(
                        f"{row.name}: {done.refused} of {done.requests} refused ({name})."
                    )
            clean = all(done.foreign <= FOREIGN for done in rounds.values())
            row.add({name: done.measures() for name, done in rounds.items()}, clean=clean)
            if row.clean == self.bench.pairs:
                break


def closed_loop(
    bench: Bench,
    pair: Pair,
    name: str,
    goal: float,
    workload: Workload,
    *,
    refused: float = 0.0,
    prepare: Callable[[], None] | None = None,
) -> Row:
    """Measure a workload at full speed; its goal is a share of the control's rate."""
    row = Row(name, f"rate ≥ {goal:.2f}", lambda row: row.median("rate") >= goal)
    pair.measure(row, workload, refused=refused, prepare=prepare)
    bench.add(row)
    return row
