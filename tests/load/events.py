"""The rows of `make bench` about events: what a company reports, with its secret in each call."""

import itertools
import json
from base64 import b64encode
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg

from service.domain.participants import external_hash
from tests.load.pairs import Bench, Workload, closed_loop
from tests.load.report import Row
from tests.load.servers import row_id
from tests.load.workloads import API, Request

EVENTS_SQL: Final = Path(__file__).with_name("events.sql")
PROGRAMME: Final = row_id(5, 1)
REFERRERS: Final = range(1, 1001)
BUYERS: Final = range(1001, 7001)
FEW, MANY = range(7001, 7101), range(7101, 7201)
NOBODYS: Final = range(8001, 9001)
"""The participants of events.sql by their numbers, which are their company's ids too."""
KEPT: Final = 10_000
"""How many events each of MANY has."""
FEW_KEPT: Final = 100
"""For --smoke."""
OF_MANY: Final = row_id(1, 3)
"""The referrer of ten million others."""
REFERRED_BY: Final = """
    WITH given AS (SELECT %(referrers)s::uuid[] AS referrers)
    UPDATE referrals
       SET referrer_id = referrers[1 + abs(hashtext(user_id::text)) %% cardinality(referrers)]
      FROM given
     WHERE programme_id = %(programme)s
"""
ANALYZED: Final = ("participants", "referrals", "decisions", "events", "standings")
AS_BEFORE: Final = (
    "DELETE FROM events WHERE programme_id = %(programme)s AND external_id NOT LIKE 'kept-%%'",
    """
    DELETE FROM decisions
     USING referrals r
     WHERE r.user_id = decisions.referral_id
       AND r.programme_id = %(programme)s
       AND decisions.sequence > 1
    """,
    """
    UPDATE referrals
       SET state = 'pending', reason = 'signed-up', sequence = 1, nth = NULL
     WHERE programme_id = %(programme)s
       AND sequence > 1
    """,
)


def measure(bench: Bench) -> None:
    with ExitStack() as stack:
        database = stack.enter_context(psycopg.connect(bench.data.database_url, autocommit=True))
        numbers = itertools.chain(REFERRERS, BUYERS, FEW, MANY, NOBODYS)
        kept = KEPT if bench.pairs > 1 else FEW_KEPT
        database.execute(f"SET bench.kept = {kept}".encode())
        make_data(bench, database, EVENTS_SQL, PROGRAMME, numbers)
        pair = stack.enter_context(bench.pair())

        def anew() -> None:
            for statement in AS_BEFORE:
                database.execute(statement, {"programme": PROGRAMME})

        def refer(*referrers: UUID) -> None:
            told = {"programme": PROGRAMME, "referrers": [*referrers]}
            database.execute(REFERRED_BY, told)

        def row(name: str, workload: Workload, goal: float, before: Row | None = None) -> Row:
            """Add a row whose goal is a share of the control's rate, or of that of `before`."""
            if before is None:
                return closed_loop(bench, pair, name, goal, workload, prepare=anew)
            least = before.median("rate") * goal
            compared = Row(
                name,
                f"rate ≥ {goal:.2f} of the row that it is compared with",
                lambda row: row.median("rate") >= least,
            )
            pair.measure(compared, workload, refused=0.0, prepare=anew)
            bench.add(compared)
            return compared

        repeated = events_of(BUYERS[:1000], "bought")
        closed_loop(bench, pair, "a repeated event", 0.06, repeated)
        row("an event without a referral", events_of(NOBODYS, "new-{n}"), 0.05)
        bought = events_of(BUYERS if bench.pairs > 1 else BUYERS[:300], "bought")
        refer(*(row_id(6, number) for number in REFERRERS))
        spread = row("an event that qualifies, of 1,000 referrers", bought, 0.025)
        refer(row_id(6, 1))
        one = row("the same, of one referrer", bought, 0.25, spread)
        refer(OF_MANY)
        row("the same, of one referrer of 10⁷", bought, 1 / 1.3, one)
        few = row("an event of a referee with 10", events_of(FEW, "more-{n}", 100), 0.05)
        row("the same, with 10⁴", events_of(MANY, "more-{n}", 100), 1 / 1.3, few)


def basic(client_id: str) -> str:
    """Return the Authorization of a client of the data set, whose secret is `bench`."""
    return f"Basic {b64encode(f'{client_id}:bench'.encode()).decode()}"


def events_of(
    numbers: Iterable[int], name: str, amount: int = 4900, programme: str = "bench"
) -> Workload:
    """Report a purchase of each participant, whose id begins with the participant's number.

    The client has the name of the programme.
    """

    def requests(_: Any) -> list[Request]:
        bodies = [
            {
                "id": f"{number}-{name}",
                "type": "purchase",
                "external_id": str(number),
                "programme": programme,
                "amount": amount,
                "unit": "EUR",
            }
            for number in numbers
        ]
        return [
            Request(f"{API}/events", "POST", basic(programme), body=json.dumps(body))
            for body in bodies
        ]

    return requests


def make_data(
    bench: Bench,
    database: "psycopg.Connection[Any]",
    file: Path,
    programme: UUID,
    numbers: Iterable[int],
) -> None:
    """Make what is reported about, anew: the hashes of the company's ids depend on the key."""
    hash_key = bench.secrets.environment["HASH_KEY"].encode()
    with database.transaction(), database.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE people (number int, external_id text, external_hash bytea)"
        )
        with cursor.copy("COPY people FROM STDIN") as copy:
            for number in numbers:
                hashed = external_hash(hash_key, programme, str(number))
                copy.write_row((number, str(number), hashed))
        cursor.execute(file.read_bytes())
    for table in ANALYZED:
        database.execute(f"ANALYZE {table}".encode())
