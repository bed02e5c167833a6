"""The rows of `make bench` about rewards: giving, reading, releasing, reviewing."""

import itertools
import json
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError

import psycopg

from tests.load import open_loop, workloads
from tests.load.events import basic, events_of, make_data
from tests.load.pairs import Bench, Pair, Workload, closed_loop
from tests.load.report import Row
from tests.load.servers import row_id
from tests.load.workloads import API, Request, Token

REWARDS_SQL: Final = Path(__file__).with_name("rewards.sql")
CLIENT: Final = "bench-rewards"
PROGRAMME: Final = row_id(5, 2)
WITH_DUE: Final = row_id(5, 4)
REFERRERS: Final = range(1, 1001)
BUYERS: Final = range(1001, 7001)
READERS: Final = range(1, 101)
"""The accounts that have rewards."""
DUE: Final = 100_000
FEW_DUE: Final = 2_000
"""For --smoke."""
BUSY_SECONDS: Final = 10.0
LOOK_UPS: Final = 500.0
"""A second, while rewards are released."""
SHARED_AMONG: Final = """
    UPDATE referrals
       SET version = %(version)s,
           referrer_id = referrers[1 + abs(hashtext(user_id::text)) %% cardinality(referrers)]
      FROM (SELECT %(referrers)s::uuid[] AS referrers) AS given
     WHERE programme_id = %(programme)s
"""
AS_BEFORE: Final = f"""
    SET LOCAL session_replication_role = replica;
    DELETE FROM transfers WHERE programme_id = '{PROGRAMME}';
    DELETE FROM rewards WHERE programme_id = '{PROGRAMME}';
    DELETE FROM balances WHERE programme_id = '{PROGRAMME}';
    DELETE FROM reward_counts;
    DELETE FROM events WHERE programme_id = '{PROGRAMME}';
    DELETE FROM decisions
     USING referrals r
     WHERE r.user_id = decisions.referral_id
       AND r.programme_id = '{PROGRAMME}'
       AND decisions.sequence > 1;
    UPDATE referrals
       SET state = 'pending', reason = 'signed-up', sequence = 1, nth = NULL
     WHERE programme_id = '{PROGRAMME}'
       AND sequence > 1;
    DELETE FROM jobs WHERE kind = 'delivery';
    DELETE FROM webhook_deliveries;
    DELETE FROM webhook_messages;
"""
LEFT: Final = "SELECT count(*) FROM rewards WHERE programme_id = %s AND state = 'pending'"
PAUSE: Final = "UPDATE programmes SET paused = %s WHERE programme_id = %s"
END: Final = (
    "DELETE FROM webhook_endpoints",
    "UPDATE referrals SET review = 'none' WHERE review = 'open'",
)


def measure(bench: Bench) -> None:
    with ExitStack() as stack:
        database = stack.enter_context(psycopg.connect(bench.data.database_url, autocommit=True))
        database.execute(f"SET bench.due = {DUE if bench.pairs > 1 else FEW_DUE}".encode())
        make_data(bench, database, REWARDS_SQL, PROGRAMME, itertools.chain(REFERRERS, BUYERS))
        pair = stack.enter_context(bench.pair())
        _events(bench, pair, database)
        for path, goal in (("balances", 0.35), ("rewards", 0.25), ("transfers", 0.25)):
            name = {"balances": "an account's balances"}.get(path, f"an account's {path}, 20")
            _check(pair, own(path))
            closed_loop(bench, pair, name, goal, own(path))
        _reviews(bench, pair)
        _release(bench, pair, database)
        for statement in END:
            database.execute(statement)


def _events(bench: Bench, pair: Pair, database: "psycopg.Connection[Any]") -> None:
    def anew() -> None:
        while True:
            time.sleep(0.2)  # wrk leaves requests under way
            try:
                with database.transaction():
                    database.execute(AS_BEFORE.encode())
            except psycopg.errors.DeadlockDetected:
                continue
            break

    def refer(referrers: range, version: int) -> None:
        ids = [row_id(8, number) for number in referrers]
        told = {"programme": PROGRAMME, "referrers": ids, "version": version}
        database.execute(SHARED_AMONG, told)

    buyers = BUYERS if bench.pairs > 1 else BUYERS[:300]
    bought = events_of(buyers, "bought", programme=CLIENT)
    refer(REFERRERS, 1)
    name = "an event that qualifies: two rewards, one endpoint"
    spread = closed_loop(bench, pair, name, 0.025, bought, prepare=anew)
    for name, version, goal in (
        ("the same, of one referrer", 1, 0.25),
        ("the same, of one referrer, with max_total", 2, 0.20),
    ):
        refer(REFERRERS[:1], version)
        compared(bench, pair, name, bought, goal, spread, prepare=anew)


def own(path: str) -> Workload:
    """Read a page of an account's own, as the account."""

    def requests(token: Token) -> list[Request]:
        return [Request(f"{API}/{path}", authorization=token(number)) for number in READERS]

    return requests


def _reviews(bench: Bench, pair: Pair) -> None:
    def reviews(programme: str) -> Workload:
        path = f"{API}/referrals?review=open&order=oldest&programme={programme}"
        return lambda _: [Request(path, authorization=basic(CLIENT))]

    for programme in ("bench-reviews", "default"):
        _check(pair, reviews(programme))
    few = closed_loop(bench, pair, "reviews, 20 of 10³ referrals", 0.0, reviews("bench-reviews"))
    compared(bench, pair, "the same, of 10⁷", reviews("default"), 1 / 1.2, few)


def _check(pair: Pair, workload: Workload) -> None:
    """Raise HTTPError unless the first request is answered well.

    What wrk has left under way may still keep the service busy: a 503 is asked again.
    """
    first = pair.requests(workload)[0]
    headers = {"Authorization": first.authorization}
    request = urllib.request.Request(f"{pair.service.url}{first.path}", headers=headers)
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                found = json.loads(answer.read())["items"]
            break
        except HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(0.1)
    assert found, f"{first.path} finds nothing"


def compared(
    bench: Bench,
    pair: Pair,
    name: str,
    workload: Workload,
    goal: float,
    before: Row,
    prepare: Any = None,
) -> None:
    """Add a row whose goal is a share of the rate of another."""
    least = before.median("rate") * goal
    row = Row(
        name,
        f"rate ≥ {goal:.2f} of the row that it is compared with",
        lambda row: row.median("rate") >= least,
    )
    pair.measure(row, workload, refused=0.0, prepare=prepare)
    bench.add(row)


def _release(bench: Bench, pair: Pair, database: "psycopg.Connection[Any]") -> None:
    """Look codes up alone, and then while rewards are released, by the same worker."""
    requests = [request.bytes() for request in pair.requests(workloads.look_ups)]
    url, seconds = pair.service.url, bench.seconds * 4
    rates, late = [], []
    for attempt in range(bench.pairs):
        quiet = open_loop.run(url, requests, LOOK_UPS, seconds, attempt)
        before, begun = _left(database), time.monotonic()
        database.execute(PAUSE, [False, WITH_DUE])
        busy = open_loop.run(url, requests, LOOK_UPS, seconds, attempt)
        rates.append((before - _left(database)) / (time.monotonic() - begun))
        database.execute(PAUSE, [True, WITH_DUE])
        late.append(busy.percentile(0.99) / quiet.percentile(0.99))
    rate, p99 = sorted(rates)[len(rates) // 2], sorted(late)[len(late) // 2]
    row = Row(
        "releasing due rewards beside 500 look-ups/s",
        "≥ 300/s, look-ups' p99 ≤ 1.5 of alone",
        lambda _: rate >= 300 and p99 <= 1.5,
        told=f"{rate:.0f}/s ({min(rates):.0f} to {max(rates):.0f}), "
        f"p99 {p99:.2f} ({min(late):.2f} to {max(late):.2f})",
    )
    bench.add(row)


def _left(database: "psycopg.Connection[Any]") -> int:
    row = database.execute(LEFT, [WITH_DUE]).fetchone()
    assert row is not None
    return int(row[0])
