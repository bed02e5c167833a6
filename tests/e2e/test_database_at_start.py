"""A database that is wrong for good: one line says what, and how to mend it, before the start.

One that is only away is waited for, and Redis is not blamed for it.
"""

import asyncio
import json
import random
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest

from service import embedded
from service.postgresql.hosts import open_connection
from service.postgresql.migration_files import names_of_migrations
from service.postgresql.urls import parse_database_url
from tests.e2e.processes import (
    COMMAND,
    LOOPBACK,
    free_port,
    run,
    service_process,
    started,
    wait_for,
    wait_until,
)
from tests.engines import redis_trouble
from tests.engines.killable import way_to
from tests.factories import new_email
from tests.stand_ins.certificate import write_certificate
from tests.stand_ins.tls import before_postgresql

PASSWORD = "p@ss:/?% #word"
PREPARE = f"""
    CREATE ROLE app LOGIN PASSWORD '{PASSWORD}';
    CREATE ROLE unable NOLOGIN PASSWORD '{PASSWORD}';
    CREATE ROLE unlisted LOGIN;
    CREATE DATABASE closed;
    REVOKE CONNECT ON DATABASE closed FROM PUBLIC;
    CREATE DATABASE "ours";
    CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C';
    CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'
"""
HBA = """
local all postgres trust
local all app,unable scram-sha-256
"""


class Guarded:
    """A PostgreSQL that lets in those it should: the environment of a service for each of them."""

    def __init__(self, url: str, environment: Mapping[str, str]) -> None:
        self._where = url.partition("?")[2]
        self._environment = environment

    def url(self, user: str, database: str, parameters: str = "") -> str:
        return f"postgresql://{user}@/{database}?{self._where}{parameters}"

    def environment(self, url: str, **changes: str) -> dict[str, str]:
        own = {"DATABASE_URL": url, "HOST": LOOPBACK, "PORT": str(free_port()), "WORKERS": "1"}
        return {**self._environment, **own, **changes}

    @contextmanager
    def connected(self, database: str = "postgres") -> Iterator["psycopg.Connection[Any]"]:
        url = self.url("postgres", database)
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    with embedded.postgresql(folder, durable=False) as url:
        server = Guarded(url, environment)
        with server.connected() as connection:
            for statement in PREPARE.split(";"):
                connection.execute(statement)
            (folder / "postgresql" / "pg_hba.conf").write_text(HBA)
            connection.execute("SELECT pg_reload_conf()")
        yield server


APP = f"app:{quote(PASSWORD, safe='')}"
COMMANDS = [("serve",), ("migrate",), ("jobs", "list"), ("clients", "list")]
WRONG = [
    pytest.param("app:wrong", "postgres", ["authentication failed", "the password"], id="password"),
    pytest.param("postgres", "nowhere", ['"nowhere" does not exist', "CREATE DATABASE"], id="name"),
    pytest.param(
        APP.replace("app", "unable", 1), "postgres", ["not permitted to log in", "LOGIN"], id="role"
    ),
    pytest.param("unlisted", "postgres", ["no pg_hba.conf entry", "pg_hba.conf"], id="no entry"),
    pytest.param(APP, "closed", ['GRANT CONNECT ON DATABASE "closed" TO "app"'], id="no CONNECT"),
    pytest.param("postgres", "ascii", ["SQL_ASCII", "UTF8"], id="SQL_ASCII"),
    pytest.param("postgres", "latin", ["LATIN1", "UTF8"], id="LATIN1"),
]


def assert_one_line(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert [word for word in words if word not in line] == [], line
    assert "wrong" not in line.replace("wrong with", "")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(("user", "database", "words"), WRONG)
def test_what_no_waiting_mends_ends_every_command_with_one_line(
    guarded: Guarded, command: tuple[str, ...], user: str, database: str, words: list[str]
) -> None:
    done = run(*command, environment=guarded.environment(guarded.url(user, database)))
    assert_one_line(done, *words)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_setting_that_postgresql_refuses_ends_serve(guarded: Guarded, workers: str) -> None:
    url = guarded.url("postgres", "postgres", "&options=-cnonsense%3D1")
    done = run("serve", environment=guarded.environment(url, WORKERS=workers))
    assert_one_line(done, '"nonsense"', "DATABASE_URL")


def test_parameters_that_cannot_be_met_are_told_with_the_other_faults(
    environment: dict[str, str],
) -> None:
    faulty = {
        "DATABASE_URL": "postgresql://h/d?channel_binding=require&sslmode=no-verify&nonsense=1",
        "DATABASE_REPLICA_URL": "postgresql://h/d?requirepeer=postgres",
        "REDIS_URL": "rediss://h/0?nonsense=1",
        "PORT": "high",
    }
    done = run("serve", environment={**environment, **faulty})
    assert done.returncode == 2
    lines = done.stderr.splitlines()[1:]
    told = ["DATABASE_REPLICA_URL", *["DATABASE_URL"] * 3, "PORT", "REDIS_URL"]
    assert [line.split()[0] for line in lines] == told
    for word in ("channel_binding=require", "sslmode=no-verify", "nonsense", "requirepeer"):
        assert word in done.stderr
    migrated = run("migrate", environment={**environment, **faulty})
    assert migrated.returncode == 2
    assert [line.split()[0] for line in migrated.stderr.splitlines()[1:]] == ["DATABASE_URL"] * 3


MET = (
    "&connect_timeout=10&channel_binding=prefer&gssencmode=prefer&sslmode=prefer"
    "&keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3"
    "&tcp_user_timeout=9000&application_name=shop&target_session_attrs=read-write"
    "&client_encoding=UTF8&pgbouncer=true&connection_limit=3&schema=my%20%22shop"
)


def test_what_providers_hand_out_is_met_by_the_service_and_by_the_migrations(
    guarded: Guarded,
) -> None:
    with guarded.connected("ours") as connection:
        connection.execute('CREATE SCHEMA "my ""shop" AUTHORIZATION app')
        told = guarded.environment(guarded.url(APP, "ours", MET))
        done = run("migrate", environment=told)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("applied ") == len(names_of_migrations())
        tables = "SELECT schemaname, tableowner FROM pg_tables WHERE tablename = 'users'"
        assert connection.execute(tables).fetchall() == [('my "shop', "app")]
        with started([*COMMAND, "serve"], told) as process:
            url = f"http://{LOOPBACK}:{told['PORT']}"
            wait_for(f"{url}/health/ready", process)
            body = json.dumps({"email": new_email(), "password": "a long walk by the river"})
            request = urllib.request.Request(
                f"{url}/api/v1/auth/register", body.encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 201
            named = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shop'"
            [(count,)] = connection.execute(named).fetchall()
            assert 1 <= count <= 3


@pytest.fixture
async def by_tcp(guarded: Guarded) -> AsyncIterator[str]:
    """Where PostgreSQL listens, as HOST:PORT: without TLS, as one that is built without it."""
    [folder] = parse_database_url(guarded.url("postgres", "postgres")).hosts
    async with way_to(f"unix://{folder.name}/.s.PGSQL.{folder.port}", random.Random(0)) as way:
        yield way.url.partition("://")[2]


async def test_the_options_of_the_socket_are_set(by_tcp: str) -> None:
    url = f"postgresql://postgres@{by_tcp}/postgres?keepalives_idle=31&keepalives_count=4"
    connection = await open_connection(parse_database_url(url))
    try:
        opened = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        for level, name, value in parse_database_url(url).socket_options():
            assert opened.getsockopt(level, name) == value
    finally:
        await connection.close()


async def test_a_server_without_tls_ends_the_start_if_tls_is_required(
    guarded: Guarded, by_tcp: str
) -> None:
    url = f"postgresql://postgres@{by_tcp}/postgres?sslmode=require"
    for command in ("serve", "migrate"):
        done = await in_thread(run, command, environment=guarded.environment(url))
        assert_one_line(done, "rejected SSL upgrade", "sslmode")


async def test_tls_is_met_by_both_and_a_certificate_that_nobody_knows_ends_the_start(
    guarded: Guarded, tmp_path: Path
) -> None:
    certificate, key = write_certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    stranger, _ = write_certificate(other)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    [folder] = parse_database_url(guarded.url("postgres", "postgres")).hosts
    async with before_postgresql(f"{folder.name}/.s.PGSQL.{folder.port}", context) as port:
        url = f"postgresql://postgres@{LOOPBACK}:{port}/postgres"
        for parameters in (
            "sslmode=require",
            "ssl=true",
            f"sslmode=verify-full&sslrootcert={certificate}",
        ):
            told = guarded.environment(f"{url}?{parameters}")
            served = await in_thread(run, "jobs", "list", environment=told)
            assert_one_line(served, "has no tables yet")  # it was asked
            pending = await in_thread(run, "migrate", environment=told | READ_ONLY)
            assert_one_line(pending, "read-only")
        told = guarded.environment(f"{url}?sslmode=verify-ca&sslrootcert={stranger}")
        for command in ("serve", "migrate"):
            done = await in_thread(run, command, environment=told)
            assert_one_line(done, "CERTIFICATE_VERIFY_FAILED", "certificates")


READ_ONLY = {"PGOPTIONS": "-c default_transaction_read_only=on"}
"""Read by libpq, from the environment: nothing is changed in what others use."""


async def in_thread(*arguments: Any, **options: Any) -> "subprocess.CompletedProcess[str]":
    work, *rest = arguments
    return await asyncio.to_thread(work, *rest, **options)


@pytest.fixture
def fresh(guarded: Guarded) -> Iterator[str]:
    """The name of an empty database."""
    name = f"test_{uuid4().hex}"
    with guarded.connected() as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_migrate_names_the_grant_that_the_role_lacks_and_with_it_goes_on(
    guarded: Guarded, fresh: str
) -> None:
    told = guarded.environment(guarded.url(APP, fresh))
    done = run("migrate", environment=told)
    assert_one_line(done, "GRANT USAGE, CREATE ON SCHEMA public TO app;")
    with guarded.connected(fresh) as connection:
        assert not connection.execute("SELECT FROM pg_tables WHERE schemaname = 'public'").rowcount
        connection.execute(done.stderr.rpartition("as its owner, ")[2])
    assert run("migrate", environment=told).returncode == 0
    without = guarded.environment(guarded.url(APP, fresh, "&schema=nowhere"))
    assert_one_line(
        run("migrate", environment=without),
        'CREATE SCHEMA IF NOT EXISTS "nowhere"; GRANT USAGE, CREATE ON SCHEMA "nowhere" TO app;',
    )
    done = run("serve", environment=without)
    assert_one_line(done, 'GRANT USAGE ON SCHEMA "nowhere" TO app;')


def test_a_role_that_only_serves_needs_rights_on_the_tables_and_no_others(
    guarded: Guarded, fresh: str
) -> None:
    owner = guarded.environment(guarded.url("postgres", fresh))
    assert run("migrate", environment=owner).returncode == 0
    told = guarded.environment(guarded.url(APP, fresh))
    grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app;"
    assert_one_line(run("serve", environment=told), grant)
    with guarded.connected(fresh) as connection:
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO app")
        assert_one_line(run("jobs", "list", environment=told), "jobs, sessions, users", grant)
        connection.execute(grant)
        assert run("jobs", "list", environment=told).returncode == 0
        done = run("migrate", environment=told)
        assert (done.returncode, done.stdout) == (0, "nothing to apply\n")
        newest = names_of_migrations()[-1]
        connection.execute(f"DELETE FROM _yoyo_migration WHERE migration_id = '{newest}'")
        connection.execute("GRANT CREATE ON SCHEMA public TO app")
        done = run("migrate", environment=told)
        assert_one_line(done, "belong to the role postgres", "GRANT postgres TO app;")


def test_migrate_on_a_standby_leads_to_the_primary(guarded: Guarded, fresh: str) -> None:
    told = guarded.environment(guarded.url("postgres", fresh))
    assert_one_line(run("migrate", environment=told | READ_ONLY), "read-only", "primary")
    assert run("migrate", environment=told).returncode == 0
    done = run("migrate", environment=told | READ_ONLY)
    assert (done.returncode, done.stdout) == (0, "nothing to apply\n")


def show(url: str) -> dict[str, Any]:
    """Return what /health/ready says, whatever its status."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            shown: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            shown = json.load(error)
    return shown


@pytest.mark.parametrize("workers", ["1", "2"])
def test_while_postgresql_is_only_away_the_service_starts_and_blames_nobody_else(
    guarded: Guarded, tmp_path: Path, workers: str
) -> None:
    away = guarded.environment("postgresql://app:secret@127.0.0.1:1/ours", WORKERS=workers)
    file = tmp_path / "log"
    with file.open("w") as log, started([*COMMAND, "serve"], away, stderr=log) as process:
        url = f"http://{LOOPBACK}:{away['PORT']}"
        wait_for(f"{url}/health/live", process)
        shown = show(f"{url}/health/ready")
        assert shown["code"] == "database-unavailable"
        assert shown["checks"] == {"postgresql": "down", "redis": "ok"}
    warnings = [json.loads(line) for line in file.read_text().splitlines()]
    told = [line["message"] for line in warnings if line["level"] == "warning"]
    away_told = [line for line in told if "PostgreSQL is away" in line]
    assert len(away_told) == int(workers)
    assert not any("Redis" in line for line in told), told


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://anna:hunter2@{}", "correct REDIS_URL"),
        ("redis://{}/99", "correct REDIS_URL"),
        ("rediss://{}", "Redis is away: "),
    ],
)
async def test_what_is_wrong_with_redis_is_one_line_and_the_service_runs(
    environment: dict[str, str], tmp_path: Path, url: str, words: str
) -> None:
    async with redis_trouble.proxied(environment["REDIS_URL"]) as proxy:
        faulty = url.format(proxy.url.partition("://")[2])

        def serve() -> str:
            file = tmp_path / "log"
            told = {**environment, "REDIS_URL": faulty}
            with file.open("w") as log, service_process(told, log) as service:
                checks = {"postgresql": "ok", "redis": "down"}
                shown = show(f"{service.url}/health/ready")
                assert shown == {"status": "degraded", "checks": checks}
                wait_until(lambda: "Redis is away" in file.read_text(), "nothing is said of Redis")
            return file.read_text()

        lines = [json.loads(line) for line in (await asyncio.to_thread(serve)).splitlines()]
    [told] = [line["message"] for line in lines if "Redis" in line["message"]]
    assert told.startswith("Redis is away: ")
    assert words in told
    assert "hunter2" not in told
