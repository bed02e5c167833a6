"""Starting what is measured: the data, the service and the control, each pinned to a core."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

import psycopg

from service import embedded
from service.domain.clock import utc_now
from service.domain.scopes import Scope
from service.domain.sessions import FIRST_PARTY
from service.postgresql.migrations import apply_migrations
from service.security.access_tokens import AccessTokens
from service.security.signing_keys import SigningKey, SigningKeys
from tests.e2e.processes import LOOPBACK, ROOT, free_port, status_of
from tests.load.machine import SERVER_CORE, pinned_to, tree

DATA_SQL: Final = Path(__file__).with_name("data.sql")
USERS: Final = 11_101_000
"""Those of the data set, most of them referrals."""
FEW_USERS: Final = 1_102_000
"""Enough that each workload finds what it asks for."""
TOKEN_LIFE: Final = timedelta(days=1)
START_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Data:
    """The servers with the data set."""

    database_url: str
    redis_url: str
    pids: Callable[[], list[int]]
    """The processes of PostgreSQL and Redis, now."""


@dataclass(frozen=True)
class Server:
    """A running server, pinned to SERVER_CORE."""

    url: str
    process: "subprocess.Popen[bytes]"
    started_in: float
    """Seconds from its start to its first answer."""

    @property
    def pids(self) -> list[int]:
        return tree(self.process.pid)


@contextmanager
def data(folder: Path, users: int) -> Iterator[Data]:
    """Run PostgreSQL, with the data set, and Valkey. The data set is made once and kept."""
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(embedded.exclusive(folder))
        database_url = stack.enter_context(embedded.postgresql(folder))
        redis_url = stack.enter_context(embedded.valkey(folder))
        made, statements = folder / "data-set-is-made", data_sql(users)
        apply_migrations(database_url)
        if not made.exists() or made.read_text() != statements:
            _make_data(database_url, statements)
            made.write_text(statements)
        children = tree(os.getpid())[1:]
        yield Data(database_url, redis_url, lambda: [pid for own in children for pid in tree(own)])


def data_sql(users: int) -> str:
    """Return the statements that make the data set, of so many users."""
    return DATA_SQL.read_text().replace(str(USERS), str(users))


def _make_data(database_url: str, statements: str) -> None:
    print("Making the data set, once: some minutes …", flush=True)
    started = time.monotonic()
    with psycopg.connect(database_url, autocommit=True) as connection:
        tables = connection.execute(
            "SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables"
            " WHERE schemaname = 'public' AND tablename NOT LIKE '%yoyo%'"
            " AND tablename NOT LIKE 'programme%'"  # which the migrations have filled
        ).fetchone()
        assert tables is not None
        connection.execute(f"TRUNCATE {tables[0]}")
        connection.execute(statements.encode())
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")
    print(f"Made in {time.monotonic() - started:.0f} s.", flush=True)


class Secrets:
    """The service's secrets, with which the benchmark makes access tokens itself."""

    def __init__(self, scopes: Collection[Scope]) -> None:
        """`scopes` are those of the access tokens."""
        self._scopes = scopes
        self._key = SigningKey.generate()
        self.environment = {
            "SIGNING_KEYS": json.dumps({"keys": [self._key.to_jwk()]}),
            "REFRESH_TOKEN_KEYS": secrets.token_urlsafe(32),
            "HASH_KEY": secrets.token_urlsafe(32),
        }

    def access_token(self, public_url: str, number: int) -> str:
        """Return an access token of user `number` of the data set; 4 000 have sessions."""
        return AccessTokens(SigningKeys([self._key]), public_url, TOKEN_LIFE).issue(
            subject=str(row_id(1, number)),
            client_id=FIRST_PARTY,
            session_id=row_id(3, number),
            scopes=self._scopes,
            now=utc_now(),
        )


def row_id(kind: int, number: int) -> UUID:
    """Return an id of the data set, as data.sql makes it."""
    return UUID(f"{1750000000000 + number:012x}7{kind:03x}8000{number:012x}")


@contextmanager
def service(environment: Mapping[str, str], log: Path, project: Path) -> Iterator[Server]:
    """Run one worker of the service of `project`, everything on, with limits out of reach."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    own = {
        "HOST": LOOPBACK,
        "PORT": str(port),
        "PUBLIC_URL": url,
        "WORKERS": "1",
        "HASHING_THREADS": "1",
        "LOG_FORMAT": "json",
        "ACCESS_TOKEN_TTL_SECONDS": str(int(TOKEN_LIFE.total_seconds())),
        "RATE_LIMIT_LOOKUP": "999999999/minute",
        "RATE_LIMIT_REGISTER": "999999999/minute",
        "RATE_LIMIT_LOGIN": "999999999/minute",
        "RATE_LIMIT_WRITE": "999999999/minute",
    }
    first = f"{url}/api/v1/referral-code/person1@example.com"
    command = [sys.executable, "-m", "service", "serve"]
    with _pinned(command, {**own, **environment}, log, url, first, project) as server:
        yield server


@contextmanager
def control(size: int, log: Path) -> Iterator[Server]:
    """Run the control, whose answers have `size` bytes."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    first = f"{url}/api/v1/referral-code/person1@example.com"
    command = [sys.executable, "-m", "tests.load.control", str(port), str(size)]
    with _pinned(command, {}, log, url, first) as server:
        yield server


@contextmanager
def _pinned(
    command: list[str],
    environment: Mapping[str, str],
    log: Path,
    url: str,
    first: str,
    folder: Path = ROOT,
) -> Iterator[Server]:
    started = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(
            pinned_to({SERVER_CORE}, command),
            cwd=folder,
            env={**os.environ, **environment, "ENV_FILE": os.devnull},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        while status_of(first) != 200:
            if process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                raise RuntimeError(f"{command} does not answer; see {log}.")
            time.sleep(0.002)
        yield Server(url, process, time.perf_counter() - started)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
