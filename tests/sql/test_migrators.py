"""Migrators beside one another: processes that wait, that are killed, and that are not ours."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import psycopg
import pytest

from service.postgresql.migration_files import FOLDER

ROOT = Path(__file__).parents[2]
NAMES = sorted(file.stem for file in FOLDER.glob("*.sql") if ".rollback." not in file.name)
LONGEST_MIGRATION = 30.0
Migrator: TypeAlias = "subprocess.Popen[str]"
Start: TypeAlias = Callable[[str], Migrator]

# Takes yoyo's lock as any yoyo does, and holds it until standard input ends.
HOLDER = """
import sys
from yoyo import get_backend

with get_backend(sys.argv[1]) as backend:
    backend.init_database()
    with backend.lock():
        print("locked", flush=True)
        sys.stdin.read()
"""
# One of our own migrators, held up where it looks what there is to apply.
OUR_HOLDER = """
import sys
from service.postgresql import migrations

def wait(*_):
    print("locked", flush=True)
    sys.stdin.read()
    return []

migrations._Backend.to_apply = wait
migrations.apply_migrations(sys.argv[1])
"""


def for_yoyo(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def start_migrator() -> Iterator[Start]:
    """Start `migrate` in a process of its own; what a failed test leaves is ended."""
    with ExitStack() as stack:

        def start(url: str) -> Migrator:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", "migrate"],
                cwd=ROOT,
                env={**os.environ, "DATABASE_URL": url, "ENV_FILE": os.devnull},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def finish(migrator: Migrator) -> list[str]:
    """Return the migrations that it has applied; it must end well and in time."""
    output, _ = migrator.communicate(timeout=LONGEST_MIGRATION)
    assert migrator.returncode == 0, output
    return re.findall(r"^applied (\S+)$", output, re.MULTILINE)


def is_waiting(migrator: Migrator, seconds: float = 2) -> bool:
    try:
        migrator.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


@contextmanager
def holder(script: str, url: str) -> Iterator[Migrator]:
    """Let a process hold yoyo's lock."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script, url]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def kill(process: Migrator) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def log_of(url: str) -> Mapping[str, int]:
    """Return how often each migration was applied, as yoyo has logged it."""
    with psycopg.connect(url) as connection:
        return dict(
            connection.execute(
                "SELECT migration_id, count(*) FROM _yoyo_log"
                " WHERE operation = 'apply' GROUP BY migration_id"
            ).fetchall()
        )


@pytest.mark.parametrize("number", [2, 4])
def test_migrators_at_once_all_succeed_and_apply_once(
    empty_database: str, start_migrator: Start, number: int
) -> None:
    migrators = [start_migrator(empty_database) for _ in range(number)]
    applied = [name for migrator in migrators for name in finish(migrator)]
    assert sorted(applied) == NAMES
    assert log_of(empty_database) == dict.fromkeys(NAMES, 1)


@pytest.mark.parametrize("script", [HOLDER, OUR_HOLDER], ids=["yoyo", "ours"])
def test_a_migrator_that_was_killed_does_not_lock_out_the_next(
    empty_database: str, start_migrator: Start, script: str
) -> None:
    url = for_yoyo(empty_database) if script is HOLDER else empty_database
    with holder(script, url) as process:
        kill(process)
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM yoyo_lock").fetchone() == (1,)
    assert finish(start_migrator(empty_database)) == NAMES


@pytest.mark.parametrize("script", [HOLDER, OUR_HOLDER], ids=["yoyo", "ours"])
def test_a_migrator_that_lives_is_waited_for(
    empty_database: str, start_migrator: Start, script: str
) -> None:
    url = for_yoyo(empty_database) if script is HOLDER else empty_database
    with holder(script, url) as process:
        migrator = start_migrator(empty_database)
        assert is_waiting(migrator)
        process.communicate("")
        assert finish(migrator) == NAMES


def test_a_migrator_with_a_slow_clock_is_waited_for(
    empty_database: str, start_migrator: Start
) -> None:
    """The lock's time is of its holder's clock, the connection's of the server's."""
    with holder(HOLDER, for_yoyo(empty_database)) as process:
        with psycopg.connect(empty_database) as connection:
            connection.execute("UPDATE yoyo_lock SET ctime = ctime - interval '30 seconds'")
        migrator = start_migrator(empty_database)
        assert is_waiting(migrator)
        process.communicate("")
        assert finish(migrator) == NAMES


def test_two_that_wait_for_one_that_is_killed_do_not_wait_for_each_other(
    empty_database: str, start_migrator: Start
) -> None:
    with holder(OUR_HOLDER, empty_database) as process:
        migrators = [start_migrator(empty_database) for _ in range(2)]
        assert all(is_waiting(migrator, 1) for migrator in migrators)
        kill(process)
    assert sorted(name for migrator in migrators for name in finish(migrator)) == NAMES


def test_a_stranger_who_stays_connected_does_not_keep_a_dead_ones_lock(
    empty_database: str, start_migrator: Start
) -> None:
    """A monitor, say, or somebody's psql."""
    with psycopg.connect(empty_database), holder(OUR_HOLDER, empty_database) as process:
        kill(process)
        assert finish(start_migrator(empty_database)) == NAMES


def yoyo(*arguments: str) -> str:
    """Run yoyo as an operator does, in the project's folder; return what it writes."""
    command = [str(Path(sys.executable).with_name("yoyo")), *arguments]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_MIGRATION
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_yoyo_from_the_command_line_applies_lists_and_rolls_back(
    empty_database: str, start_migrator: Start
) -> None:
    where = ("--config", "sql/yoyo.ini", "--database", for_yoyo(empty_database))

    def listed() -> dict[str, str]:
        return {
            name: status
            for status, name in re.findall(r"^([AU])\s+(\S+)", yoyo("list", *where), re.MULTILINE)
        }

    assert listed() == dict.fromkeys(NAMES, "U")
    yoyo("apply", *where)
    assert listed() == dict.fromkeys(NAMES, "A")
    assert finish(start_migrator(empty_database)) == []

    yoyo("rollback", "--revision", NAMES[-1], *where)
    assert listed() == {**dict.fromkeys(NAMES, "A"), NAMES[-1]: "U"}
    assert finish(start_migrator(empty_database)) == NAMES[-1:]

    yoyo("rollback", *where)
    assert listed() == {**dict.fromkeys(NAMES, "A"), NAMES[-1]: "U"}
    yoyo("rollback", "--all", *where)
    assert listed() == dict.fromkeys(NAMES, "U")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://localhost:1/db", "PostgreSQL cannot be reached: "),
        ("postgresql://localhost:port/db", "DATABASE_URL must be a URL "),
        ("postgresql://[::1/db", "DATABASE_URL must be a URL "),
        ("mysql://localhost/db", "DATABASE_URL must be a URL "),
        ("", "DATABASE_URL is not set."),
    ],
)
def test_what_hinders_a_migrator_is_told_without_a_traceback(
    start_migrator: Start, url: str, words: str
) -> None:
    migrator = start_migrator(url)
    output, _ = migrator.communicate(timeout=LONGEST_MIGRATION)
    assert migrator.returncode in {1, 2}
    assert output.splitlines()[-1].startswith(words)
    assert len(output.splitlines()) <= 2
