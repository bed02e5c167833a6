"""`make bench`: how fast the service is, as ratios to aiohttp alone in the same minutes.

    python -m tests.load [--pairs N] [--seconds S] [--only PART …] [--against CHECKOUT] [--smoke]

In each row the control and the service take turns on one core; wrk, PostgreSQL and Redis have the
others. A pair beside which other processes took over 8 % of the machine is measured again, and
fewer than three clean pairs are no result. It ends by itself.

With --against the service of another checkout of the project takes turns as well, on the same data:
the last column is what this checkout's service takes of what that one does.
"""

import argparse
import compileall
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import psycopg

from service.domain.scopes import Scope, scopes_of
from service.domain.users import Role
from tests.load import (
    bodies,
    events,
    explain,
    open_loop,
    report,
    rewards,
    servers,
    webhooks,
    workloads,
    wrk,
)
from tests.load.machine import OTHER_CORES, SERVER_CORE, busy_seconds, cpu_of, pinned_to, pss_mib
from tests.load.pairs import FOREIGN, Bench, Pair, closed_loop
from tests.load.report import CONTROL, NEW, OLD, Row
from tests.load.servers import FEW_USERS, USERS, Secrets

OPEN_LOOP_RATE: Final = 1000.0
MIXED_RATE: Final = 500.0
REGISTERING_CLIENTS: Final = 8
NOWHERE: Final = "redis://127.0.0.1:1"
SMOKE: Final = ("hits", "proxied", "codes", "events", "rewards", "webhooks", "start-up")
"""The parts that --smoke runs: each kind of measurement that does not take long."""
END_CODES: Final = """
    UPDATE referral_codes
       SET ended_at = now()
     WHERE ended_at IS NULL
       AND owner_id = ANY (%s)
"""


def hits(bench: Bench) -> None:
    with bench.pair() as pair:
        closed_loop(bench, pair, "look-up, cache hit", 0.80, workloads.look_ups, refused=0.02)
        bodies.check(pair.service.url, bench.data.database_url, pair.requests(workloads.look_ups))
        closed_loop(
            bench,
            pair,
            "look-up of unknown email addresses",
            0.75,
            workloads.unknown_look_ups,
            refused=1,
        )
        closed_loop(bench, pair, "signed-in GET /users/me", 0.40, workloads.own_accounts)
        fixed_rate(bench, pair)
        memory(bench, pair)


def proxied(bench: Bench) -> None:
    name = "look-up, cache hit, behind a trusted proxy"
    with bench.pair(TRUSTED_PROXIES="127.0.0.1") as pair:
        closed_loop(bench, pair, name, 0.80, workloads.forwarded_look_ups, refused=0.02)


def without_redis(bench: Bench) -> None:
    with bench.pair(NOWHERE) as pair:
        closed_loop(bench, pair, "look-up, Redis away", 0.50, workloads.look_ups, refused=0.02)
        bodies.check(pair.service.url, bench.data.database_url, pair.requests(workloads.look_ups))


def referrals(bench: Bench) -> None:
    with bench.pair() as pair:
        first = closed_loop(
            bench, pair, "referrals page of 20, of 10³", 0.25, workloads.pages(1, deep=False)
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
            connection.execute(END_CODES, [owners])

    with bench.pair() as pair:
        closed_loop(bench, pair, "create + delete a code", 0.10, workloads.codes, prepare=prepare)


def fixed_rate(bench: Bench, pair: Pair) -> None:
    row = Row(
        "look-up, 1 000/s, open loop",
        "CPU ≤ 1.6, p99 ≤ 1.5",
        lambda row: row.median("CPU") <= 1.6 and row.median("p99") <= 1.5,
    )
    requests = [request.bytes() for request in pair.requests(workloads.look_ups)]
    seconds = bench.seconds * 2
    for attempt in range(bench.pairs * bench.tries):
        measured, clean = {}, True
        for name in pair.turns(attempt):
            server = pair.servers[name]
            own = [*server.pids, *bench.data.pids(), os.getpid()]
            busy, known, of_server = busy_seconds(), cpu_of(own), cpu_of(server.pids)
            found = open_loop.run(server.url, requests, OPEN_LOOP_RATE, seconds, attempt)
            measured[name] = {
                "CPU": (cpu_of(server.pids) - of_server) / len(found.sorted) * 1e6,
                "p50": found.percentile(0.5),
                "p99": found.percentile(0.99),
            }
            foreign = (busy_seconds() - busy - cpu_of(own) + known) / seconds
            clean = clean and foreign / (os.cpu_count() or 1) <= FOREIGN and not found.unfinished
        row.add(measured, clean=clean)
        if row.clean == bench.pairs:
            break
    bench.add(row)


def memory(bench: Bench, pair: Pair) -> None:
    early = pss_mib(pair.service.pids)
    late = {CONTROL: {"memory": pss_mib(pair.servers[CONTROL].pids)}}
    for name in pair.services:
        file, sent = pair.file(name, workloads.look_ups), pair.sent if name == NEW else 0
        while sent < bench.requests_before_memory:
            sent += pair.load(name, file, 5, sent).requests
        late[name] = {"memory": pss_mib(pair.servers[name].pids)}
    own = late[NEW]["memory"]
    row = Row(
        "memory after 1 M requests",
        "≤ 80 MiB, flat within 10 %",
        lambda _: own <= 80 and own <= early * 1.1,
        told=f"{own:.0f} MiB ({own / early - 1:+.0%})",
    )
    row.add(late)
    bench.add(row)


def registering_with_codes(bench: Bench) -> None:
    """What a registration does beside hashing: with the cheapest hash there is."""
    with bench.pair(ARGON2_MEMORY_KIB="64", ARGON2_PASSES="1") as pair:
        row = Row(
            "registrations with a code, cheap hashes",
            "rate ≥ 0.95 of the older service",
            lambda row: statistics.median(row.ratios("rate", OLD) or [0.0]) >= 0.95,
        )
        pair.measure(row, workloads.registrations_with_codes, refused=0.0, prepare=None)
        bench.add(row)


def start_up(bench: Bench) -> None:
    row = Row("start to first answer", "≤ 0.6 s", lambda _: statistics.median(seconds) <= 0.6)
    for _ in range(bench.starts):
        with bench.pair() as pair:
            row.add({name: {"start": each.started_in} for name, each in pair.servers.items()})
    seconds = [pair[NEW]["start"] for pair in row.pairs]
    row.told = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
    bench.add(row)


def registering(bench: Bench) -> None:
    alone = Row(
        "registrations, to argon2id alone", "≥ 0.90", lambda row: row.median("rate") >= 0.90
    )
    mixed = Row(
        "500 look-ups/s beside registrations",
        "p99 ≤ 1.5 of alone, none failed; registrations ≥ 0.80",
        lambda row: row.median("p99") <= 1.5 and row.median("rate") >= 0.80,
    )
    with bench.pair() as pair:
        for name in pair.services:
            pair.warm_up(name, pair.file(name, workloads.look_ups))
        files = {name: pair.file(name, workloads.registrations) for name in pair.services}
        for attempt in range(bench.pairs * 2):
            hashes = {"rate": _argon2id_alone(bench.seconds * 2)}
            registered, beside = {CONTROL: hashes}, {CONTROL: hashes}
            clean = True
            for name, file in files.items():
                mark = int(time.time() * 10)
                done = pair.load(name, file, bench.seconds * 2, mark, REGISTERING_CLIENTS)
                registered[name] = {"rate": done.answered}
                quiet, busy, mixed_done = _look_ups_beside(pair, name, file, attempt)
                beside[name] = {**busy, "rate": mixed_done.answered}
                if name == NEW:
                    beside[CONTROL] = {**quiet, **hashes}
                clean = clean and max(done.foreign, mixed_done.foreign) <= FOREIGN
            alone.add(registered, clean=clean)
            mixed.add(beside, clean=clean)
    bench.add(alone)
    bench.add(mixed)


def _look_ups_beside(
    pair: Pair, name: str, file: Path, seed: int
) -> tuple[dict[str, float], dict[str, float], wrk.Round]:
    """Return how late look-ups are alone, how late beside registrations, and those."""
    url, seconds = pair.servers[name].url, pair.bench.seconds * 2
    requests = [request.bytes() for request in pair.requests(workloads.look_ups)]
    quiet = open_loop.run(url, requests, MIXED_RATE, seconds, seed)
    mark = int(time.time() * 10)
    with ThreadPoolExecutor(1) as beside:
        under_way = beside.submit(pair.load, name, file, seconds + 1, mark, REGISTERING_CLIENTS)
        time.sleep(0.5)
        busy = open_loop.run(url, requests, MIXED_RATE, seconds, seed)
        done = under_way.result()
    failed = busy.unfinished + sum(
        count for status, count in busy.statuses.items() if status >= 500
    )
    if failed:
        raise RuntimeError(f"{failed} look-ups failed beside registrations ({name}).")
    late = [{"p50": run.percentile(0.5), "p99": run.percentile(0.99)} for run in (quiet, busy)]
    return late[0], late[1], done


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
    "proxied": proxied,
    "without-redis": without_redis,
    "referrals": referrals,
    "codes": codes,
    "registering": registering,
    "registering-with-codes": registering_with_codes,
    "events": events.measure,
    "rewards": rewards.measure,
    "webhooks": webhooks.measure,
    "start-up": start_up,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a round")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="where the older service is"
    )
    parser.add_argument("--smoke", action="store_true", help="one short pair, on little data")
    parser.add_argument("--data", type=Path, default=Path(".data/bench"))
    parser.add_argument("--results", type=Path, default=Path(".data/bench/results"))
    parsed = parser.parse_args()
    if parsed.against is not None and not (parsed.against / "service").is_dir():
        parser.error(f"{parsed.against} is no checkout of this project")
    wrk.check_installed()
    os.sched_setaffinity(0, OTHER_CORES)
    for checkout in filter(None, (Path(), parsed.against)):
        # Where bytecode is not written (PYTHONDONTWRITEBYTECODE), what changed starts slower.
        compileall.compile_dir(checkout / "service", quiet=1)
    with ExitStack() as stack:
        folder, results, users = parsed.data, parsed.results, USERS
        if parsed.smoke:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            results, users = folder / "results", FEW_USERS
        data = stack.enter_context(servers.data(folder, users))
        explain.show(data.database_url, folder / "plans.txt")
        scopes = scopes_of(Role.USER)
        if parsed.against is not None:
            scopes -= {Scope.REWARDS_READ}  # which an older service does not know
        bench = Bench(data, Secrets(scopes), folder, parsed.pairs, parsed.seconds, parsed.against)
        if parsed.smoke:
            bench.pairs, bench.seconds, bench.tries, bench.starts = 1, 0.5, 1, 1
            bench.warmed = 0
            bench.refused, bench.requests_before_memory = 1.0, 0
        for name in parsed.only:
            if not parsed.smoke or name in SMOKE:
                PARTS[name](bench)
        report.write(bench.rows, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
