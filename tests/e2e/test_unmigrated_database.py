"""A database without its tables, which operators forget first, is reported in one line."""

import subprocess
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from tests.e2e.processes import COMMAND, free_port, run, started
from tests.factories import PASSWORD


@pytest.fixture
def unmigrated(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment of a service whose database is empty."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        url = urlsplit(environment["DATABASE_URL"])._replace(path=f"/{name}").geturl()
        yield {**environment, "DATABASE_URL": url, "PORT": str(free_port())}
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_ends_and_says_what_is_to_be_done(unmigrated: dict[str, str], workers: str) -> None:
    """And does not start one worker after the other, each of which fails in the same way."""
    told = {**unmigrated, "WORKERS": workers}
    with started([*COMMAND, "serve"], told, stderr=subprocess.PIPE) as process:
        assert process.wait(10) == 1
        assert process.stderr is not None
        said = process.stderr.read()
    assert "python -m service migrate" in said
    assert "Traceback" not in said


def test_so_does_the_making_of_an_admin(unmigrated: dict[str, str]) -> None:
    told = {**unmigrated, "ADMIN_PASSWORD": PASSWORD}
    done = run("admin", "create", "root@example.com", environment=told)
    assert done.returncode == 1
    assert "python -m service migrate" in done.stderr
    assert "Traceback" not in done.stderr


def test_new_secrets_for_a_folder_that_is_not_there_are_one_clear_line() -> None:
    done = run("keys", "generate", "--file", "/nowhere/secrets.env", environment={})
    assert done.returncode == 1
    assert "/nowhere" in done.stderr
    assert "Traceback" not in done.stderr
