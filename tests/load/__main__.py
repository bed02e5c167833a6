"""`make bench`: how fast the service is, as ratios to aiohttp alone in the same minutes.

    python -m tests.load [--pairs N] [--seconds S] [--only ROW …] [--results FOLDER]

For each row the control and the service take turns on one core; wrk, PostgreSQL and Redis have the
others. A pair in which something else took over 8 % of the machine is measured again, and fewer
than three clean pairs are no result. All ends by itself.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg

from tests.load import bodies, explain, open_loop, report, servers, workloads, wrk
from tests.load.machine import OTHER_CORES, SERVER_CORE, busy_seconds, cpu_of, pinned_to, pss_mib
from tests.load.report import Row
from tests.load.servers import Data, Secrets, Server
from tests.load.workloads import Request

FOREIGN: Final = 0.08
TRIES_A_PAIR: Final = 4
ANSWER_BYTES: Final = 115
"""As long as the answer to a look-up."""
OPEN_LOOP_RATE: Final = 1000.0
MIXED_RATE: Final = 500.0
REGISTERING_CLIENTS: Final = 8
REQUESTS_BEFORE_MEMORY: Final = 1_000_000
STARTS: Final = 5
NOBODY: Final = "redis://127.0.0.1:1"
END_CODES: Final = """
    UPDATE referral_codes
       SET ended_at = now()
     WHERE ended_at IS NULL
       AND owner_id = ANY ($1)
"""
Workload = Callable[[workloads.Token], list[Request]]


@dataclass
class Bench:
    """What all measurements need."""

    data: Data
    secrets: Secrets
    folder: Path
    pairs: int
    seconds: float
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def both(self, redis_url: str | None = None) -> Iterator["Pair"]:
        """Run the service and the control."""
        environment = {
            **self.secrets.environment,
            "DATABASE_URL": self.data.database_url,
            "REDIS_URL": redis_url or self.data.redis_url,
        }
        with (
            servers.service(environment, self.folder / "service.log") as service,
            servers.control(ANSWER_BYTES, self.folder / "control.log") as control,
        ):
            yield Pair(self, service, control)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(report.line(row), flush=True)


@dataclass
class Pair:
    """A running service beside a running control."""

    bench: Bench
    service: Server
    control: Server
    sent: int = 0
    """Requests to the service until now."""

    def requests(self, workload: Workload) -> list[Request]:
        return workload(lambda number: self.bench.secrets.access_token(self.service.url, number))

    def file(self, name: str, requests: list[Request]) -> Path:
        file = self.bench.folder / f"{name}.requests"
        file.write_text(workloads.to_file(requests))
        return file

    def load(
        self, server: Server, file: Path, seconds: float, mark: int = 0, connections: int = 64
    ) -> wrk.Round:
        done = wrk.run(server, self.bench.data, file, seconds, connections=connections, mark=mark)
        if server is self.service:
            self.sent += done.requests
        return done

    def warm_up(self, file: Path, requests: int) -> None:
        """Send each request once or more, so that whatever can be kept is kept."""
        sent = 0
        while sent < requests * 1.2:
            sent += self.load(self.service, file, 2, sent).requests

    def measure(
        self, row: Row, workload: Workload, *, refused: float, prepare: Callable[[], None] | None
    ) -> None:
        """Add the ratios of clean pairs to the row. `refused` is the share of answers over 399."""
        requests = self.requests(workload)
        file = self.file("service", requests)
        plain = self.file("control", self.requests(workloads.look_ups))
        self.warm_up(file, len(requests))
        self.load(self.control, plain, 1)
        for attempt in range(self.bench.pairs * TRIES_A_PAIR):
            if prepare is not None:
                prepare()
            mark = 0 if prepare is not None else attempt * 7919
            control = self.load(self.control, plain, self.bench.seconds, mark)
            service = self.load(self.service, file, self.bench.seconds, mark)
            row.cpu_of_all.append((control.server_cpu, service.server_cpu))
            if abs(service.refused / service.requests - refused) > 0.01:
                raise RuntimeError(f"{row.name}: {service.refused} of {service.requests} refused.")
            if max(control.foreign, service.foreign) > FOREIGN:
                row.dropped += 1
                continue
            row.rate.append(service.rate / control.rate)
            row.p50.append(service.p50 / control.p50)
            row.p99.append(service.p99 / control.p99)
            row.cpu.append(service.server_cpu / control.server_cpu)
            row.detail.append({"control": vars(control), "service": vars(service)})
            if len(row.rate) == self.bench.pairs:
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
    row = Row(name, f"rate ≥ {goal:.2f}", lambda row: row.median("rate") >= goal)
    pair.measure(row, workload, refused=refused, prepare=prepare)
    bench.add(row)
    return row


def hits(bench: Bench) -> None:
    with bench.both() as pair:
        closed_loop(bench, pair, "look-up, cache hit", 0.80, workloads.look_ups, refused=0.02)
        bodies.check(pair.service.url, bench.data.database_url, pair.requests(workloads.look_ups))
        closed_loop(
            bench, pair, "look-up of unknown e-mails", 0.75, workloads.unknown_look_ups, refused=1
        )
        closed_loop(bench, pair, "signed-in GET /users/me", 0.40, workloads.own_accounts)
        fixed_rate(bench, pair)
        memory(bench, pair)


def without_redis(bench: Bench) -> None:
    with bench.both(NOBODY) as pair:
        closed_loop(bench, pair, "look-up, Redis away", 0.50, workloads.look_ups, refused=0.02)
        bodies.check(pair.service.url, bench.data.database_url, pair.requests(workloads.look_ups))


def referrals(bench: Bench) -> None:
    with bench.both() as pair:
        first = closed_loop(
            bench,
            pair,
            "referrals page of 20, of 10³",
            0.25,
            workloads.pages(1, deep=False),
        )
        for number, count in ((1, "10³"), (2, "10⁵"), (3, "10⁷")):
            for deep in (False, True):
                if number == 1 and not deep:
                    continue
                row = Row(
                    f"the same, of {count}, {'deep' if deep else 'first'}",
                    "within a factor of 1.2",
                    lambda row: row.median("rate") * 1.2 >= first.median("rate"),
                )
                pair.measure(row, workloads.pages(number, deep=deep), refused=0.0, prepare=None)
                bench.add(row)


def codes(bench: Bench) -> None:
    owners = [servers.row_id(1, workloads.OWNERS_FROM + number) for number in range(1024)]

    def prepare() -> None:
        with psycopg.connect(bench.data.database_url) as connection:
            connection.execute(END_CODES.replace("$1", "%s"), [owners])

    with bench.both() as pair:
        closed_loop(bench, pair, "create + delete a code", 0.10, workloads.codes, prepare=prepare)


def fixed_rate(bench: Bench, pair: Pair) -> None:
    row = Row(
        "look-up, 1 000/s, open loop",
        "CPU ≤ 1.6, p99 ≤ 1.5",
        lambda row: row.median("cpu") <= 1.6 and row.median("p99") <= 1.5,
    )
    requests = [request.bytes() for request in pair.requests(workloads.look_ups)]
    seconds = bench.seconds * 2
    for attempt in range(bench.pairs * TRIES_A_PAIR):
        measured = []
        for server in (pair.control, pair.service):
            own = [*server.pids, *bench.data.pids(), os.getpid()]
            busy, known, of_server = busy_seconds(), cpu_of(own), cpu_of(server.pids)
            found = open_loop.run(server.url, requests, OPEN_LOOP_RATE, seconds, attempt)
            answered = len(found.sorted)
            cpu = (cpu_of(server.pids) - of_server) / answered
            foreign = (busy_seconds() - busy - cpu_of(own) + known) / seconds
            measured.append((found, cpu, foreign / (os.cpu_count() or 1)))
        (control, control_cpu, _), (service, service_cpu, _) = measured
        row.cpu_of_all.append((control_cpu * 1e6, service_cpu * 1e6))
        if max(foreign for *_, foreign in measured) > FOREIGN or service.unfinished:
            row.dropped += 1
            continue
        row.cpu.append(service_cpu / control_cpu)
        row.p50.append(service.percentile(0.5) / control.percentile(0.5))
        row.p99.append(service.percentile(0.99) / control.percentile(0.99))
        row.detail.append(
            {
                "control": {"cpu": control_cpu * 1e6, "p99": control.percentile(0.99)},
                "service": {"cpu": service_cpu * 1e6, "p99": service.percentile(0.99)},
            }
        )
        if len(row.cpu) == bench.pairs:
            break
    bench.add(row)


def memory(bench: Bench, pair: Pair) -> None:
    file = pair.file("service", pair.requests(workloads.look_ups))
    early = pss_mib(pair.service.pids)
    while pair.sent < REQUESTS_BEFORE_MEMORY:
        pair.load(pair.service, file, 5, pair.sent)
    late = pss_mib(pair.service.pids)
    row = Row(
        "memory after 1 M requests",
        "≤ 80 MiB, flat within 10 %",
        lambda _: late <= 80 and late <= early * 1.1,
        told=f"{late:.0f} MiB ({late / early - 1:+.0%})",
    )
    row.detail.append({"early": early, "late": late, "control": pss_mib(pair.control.pids)})
    bench.add(row)


def start_up(bench: Bench) -> None:
    starts, controls = [], []
    for _ in range(STARTS):
        with bench.both() as pair:
            starts.append(pair.service.started_in)
            controls.append(pair.control.started_in)
    median = statistics.median(starts)
    row = Row(
        "start to first answer",
        "≤ 0.6 s",
        lambda _: median <= 0.6,
        told=f"{median:.2f} s ({min(starts):.2f} to {max(starts):.2f})",
    )
    row.detail.append({"service": starts, "control": controls})
    bench.add(row)


def registering(bench: Bench) -> None:
    alone = Row(
        "registrations, to argon2id alone",
        "≥ 0.90",
        lambda row: row.median("rate") >= 0.90,
    )
    mixed = Row(
        "500 look-ups/s beside registrations",
        "p99 ≤ 1.5 of alone, none failed; registrations ≥ 0.80",
        lambda row: row.median("p99") <= 1.5 and row.median("rate") >= 0.80,
    )
    with bench.both() as pair, ThreadPoolExecutor(1) as beside:
        look_ups = pair.requests(workloads.look_ups)
        pair.warm_up(pair.file("service", look_ups), len(look_ups))
        requests = [request.bytes() for request in look_ups]
        file = pair.file("registrations", pair.requests(workloads.registrations))
        url, seconds = pair.service.url, bench.seconds * 2
        for attempt in range(bench.pairs * 2):
            pure = _argon2id_alone(seconds)
            mark = int(time.time() * 10)
            done = pair.load(pair.service, file, seconds, mark, REGISTERING_CLIENTS)
            if done.foreign > FOREIGN:
                alone.dropped += 1
            else:
                alone.rate.append(done.answered / pure)
            quiet = open_loop.run(url, requests, MIXED_RATE, seconds, attempt)
            under_way = beside.submit(
                pair.load, pair.service, file, seconds + 1, mark + 7, REGISTERING_CLIENTS
            )
            time.sleep(0.5)
            busy = open_loop.run(url, requests, MIXED_RATE, seconds, attempt)
            done = under_way.result()
            if done.foreign > FOREIGN:
                mixed.dropped += 1
                continue
            failed = busy.unfinished + sum(
                count for status, count in busy.statuses.items() if status >= 500
            )
            if failed:
                raise RuntimeError(f"{failed} look-ups failed beside registrations.")
            mixed.p50.append(busy.percentile(0.5) / quiet.percentile(0.5))
            mixed.p99.append(busy.percentile(0.99) / quiet.percentile(0.99))
            mixed.rate.append(done.answered / pure)
            mixed.detail.append(
                {"alone_p99": quiet.percentile(0.99), "p99": busy.percentile(0.99), "pure": pure}
            )
    bench.add(alone)
    bench.add(mixed)


def _argon2id_alone(seconds: float) -> float:
    done = subprocess.run(
        pinned_to({SERVER_CORE}, [sys.executable, "-m", "tests.load.hashing", "1", str(seconds)]),
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


PARTS: Final = {
    "hits": hits,
    "without-redis": without_redis,
    "referrals": referrals,
    "codes": codes,
    "registering": registering,
    "start-up": start_up,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a round")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", type=Path, default=Path(".data/bench"))
    parser.add_argument("--results", type=Path, default=Path(".data/bench/results"))
    parsed = parser.parse_args()
    wrk.check_installed()
    os.sched_setaffinity(0, OTHER_CORES)
    with ExitStack() as stack:
        data = stack.enter_context(servers.data(parsed.data))
        explain.show(data.database_url, parsed.data / "plans.txt")
        bench = Bench(data, Secrets(), parsed.data, parsed.pairs, parsed.seconds)
        for name in parsed.only:
            PARTS[name](bench)
    report.write(bench.rows, parsed.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
