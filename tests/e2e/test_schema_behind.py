"""A schema older than the code is reported by name, at start and while the service runs."""

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest
from yoyo import get_backend, read_migrations

from service.postgresql.migration_files import FOLDER, names_of_migrations
from tests.e2e.processes import (
    COMMAND,
    LOOPBACK,
    free_port,
    own_database,
    run,
    service_process,
    started,
    status_of,
    wait_for,
    wait_until,
    workers_of,
)
from tests.factories import PASSWORD

NAMES = names_of_migrations()
SMTP = {"SMTP_URL": f"smtp://{LOOPBACK}:1", "MAIL_FROM": "referrals@example.com"}


def roll_back(database_url: str, *names: str) -> None:
    """Roll migrations back, as `yoyo rollback` does."""
    migrations = read_migrations(str(FOLDER)).filter(lambda migration: migration.id in names)
    url = database_url.replace("postgresql://", "postgresql+psycopg://")
    with get_backend(url) as backend, backend.lock():
        backend.rollback_migrations(backend.to_rollback(migrations))


def behind(environment: Mapping[str, str], database_url: str, **changes: str) -> dict[str, str]:
    own = {"DATABASE_URL": database_url, "HOST": LOOPBACK, "PORT": str(free_port())}
    return {**environment, **SMTP, **own, **changes}


def problem_at(url: str, body: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Return the status and the document of an answer that is an error."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    with caught.value as error:
        document: dict[str, Any] = json.load(error)
        return error.code, document


@pytest.mark.parametrize("count", [1, 3, len(NAMES) - 2])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_on_an_older_schema_ends_at_once_and_names_what_is_missing(
    environment: dict[str, str], workers: str, count: int
) -> None:
    missing = NAMES[-count:]
    with own_database(environment["DATABASE_URL"]) as url:
        roll_back(url, *missing)
        told = behind(environment, url, WORKERS=workers)
        done = run("serve", environment=told)
        assert done.returncode == 1
        assert done.stderr == (
            "The database schema is older than this release: run `python -m service migrate`; "
            f"missing: {', '.join(missing)}\n"
        )
        assert run("migrate", environment=told).returncode == 0
        with started([*COMMAND, "serve"], told) as process:
            wait_for(f"http://{LOOPBACK}:{told['PORT']}/health/ready", process)


@pytest.mark.parametrize(
    "command",
    [
        ("worker",),
        ("admin", "create", "root@example.com"),
        ("admin", "promote", "root@example.com"),
        ("jobs", "list"),
        ("jobs", "retry", "--all"),
        ("clients", "list"),
        ("clients", "create", "Shop", "--confidential"),
    ],
    ids=" ".join,
)
def test_so_does_every_command_that_works_on_the_tables(
    environment: dict[str, str], command: tuple[str, ...]
) -> None:
    with own_database(environment["DATABASE_URL"]) as url:
        roll_back(url, NAMES[-1])
        done = run(*command, environment=behind(environment, url, ADMIN_PASSWORD=PASSWORD))
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert "run `python -m service migrate`" in line
        assert line.endswith(f"missing: {NAMES[-1]}")


def test_a_newer_schema_is_none_of_its_business(environment: dict[str, str]) -> None:
    """Migrate first, then replace the processes: the release before goes on, and can restart."""
    with own_database(environment["DATABASE_URL"]) as url:
        with psycopg.connect(url) as connection:
            connection.execute(
                "INSERT INTO _yoyo_migration (migration_hash, migration_id)"
                " VALUES ('of a newer release', '9999_of_a_newer_release')"
            )
        told = behind(environment, url)
        with started([*COMMAND, "serve"], told) as process:
            wait_for(f"http://{LOOPBACK}:{told['PORT']}/health/ready", process)
        assert run("jobs", "list", environment=told).returncode == 0
        assert run("migrate", environment=told).stdout == "nothing to apply\n"


def test_a_schema_that_is_rolled_back_under_a_running_service_is_503_until_it_is_back(
    environment: dict[str, str],
) -> None:
    """Also of a worker that is started meanwhile, in the place of one that died."""
    body = {"email": "anna@example.com", "password": PASSWORD}
    with service_process(environment, WORKERS="2") as service:
        ready, register = f"{service.url}/health/ready", f"{service.url}/api/v1/auth/register"
        database_url = service.environment["DATABASE_URL"]
        roll_back(database_url, *NAMES[5:])
        for _ in range(2):
            status, problem = problem_at(ready)
            assert (status, problem["code"]) == (503, "migrations-pending")
            assert "run `python -m service migrate`" in problem["detail"].lower()
            assert all(name in problem["detail"] for name in NAMES[5:])
            assert problem["checks"]["postgresql"] == "ok"
            status, problem = problem_at(register, body)
            assert (status, problem["code"]) == (503, "migrations-pending")
            assert not any(name in problem["detail"] for name in NAMES)
            for pid in workers_of(service.process.pid):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: status_of(ready) == 503, "the killed workers are not replaced")
        assert run("migrate", environment=service.environment).returncode == 0
        wait_for(ready, service.process)
        request = urllib.request.Request(
            register, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 201
