"""The embedded servers keep their data and leave nothing behind, whatever is killed and when."""

import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from service.embedded import EmbeddedServerError, exclusive, postgresql, valkey
from service.embedded.folders import socket_folder

ROOT = Path(__file__).parents[2]
LONGEST_STOP = 3.0
AS_ROOT = os.geteuid() == 0
ORDINARY_USER = pwd.getpwnam("daemon").pw_uid

# It imports before it changes its user, as the other one may not reach this Python.
PARENT = """
import os, signal, sys
from pathlib import Path
from service.embedded import exclusive, postgresql, processes, valkey

folder, how = Path(sys.argv[1]), sys.argv[2]
if how == "without kernel help":
    processes._libc = None
# Always set, as a shell's background job starts out deaf.
deaf = how == "deaf to Ctrl-C"
signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.default_int_handler)
if how.isdigit():
    os.setgroups([]), os.setgid(int(how)), os.setuid(int(how))
with exclusive(folder), postgresql(folder) as database_url, valkey(folder) as cache_url:
    print(database_url, cache_url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def parent(folder: Path, how: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run both servers under a process of their own, which stops them when its stdin ends."""
    command = [sys.executable, "-c", PARENT, str(folder), how]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def urls_of(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def pid_of_postgresql(folder: Path) -> int:
    return int((folder / "postgresql" / "postmaster.pid").read_text().split()[0])


def pids_of(folder: Path) -> tuple[int, int]:
    return pid_of_postgresql(folder), int((folder / "valkey" / "valkey.pid").read_text())


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid: int) -> bool:
    """Tell whether the process runs; one that only waits to be reaped does not."""
    state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip() not in ("", "Z")


@pytest.fixture
def outliving() -> Iterator[list[int]]:
    """Take the pids of servers that may outlive their parent; end what a failed test leaves."""
    pids: list[int] = []
    yield pids
    for pid in filter(lives, pids):
        os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def remember(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'a word' AS word")


def remembers(database_url: str) -> bool:
    with psycopg.connect(database_url) as connection:
        return connection.execute("SELECT word FROM kept").fetchone() == ("a word",)


def pings(cache_url: str) -> bool:
    with Redis.from_url(cache_url) as cache:
        return cache.ping() is True


def assert_starts_with_its_data(folder: Path) -> None:
    with postgresql(folder) as database_url, valkey(folder) as cache_url:
        assert remembers(database_url)
        assert pings(cache_url)


def test_data_survives_a_restart_and_stopping_is_quick(tmp_path: Path) -> None:
    with postgresql(tmp_path) as database_url, valkey(tmp_path) as cache_url:
        remember(database_url)
        assert pings(cache_url)
        pids = pids_of(tmp_path)
        started_to_stop = time.monotonic()
    assert time.monotonic() - started_to_stop < LONGEST_STOP
    assert not any(map(lives, pids))
    assert_starts_with_its_data(tmp_path)


def test_the_database_is_utf_8_in_utc_and_has_no_tcp(tmp_path: Path) -> None:
    with postgresql(tmp_path, durable=False) as url, psycopg.connect(url) as connection:
        for setting, value in {
            "server_encoding": "UTF8",
            "timezone": "UTC",
            "listen_addresses": "",
            "fsync": "off",
        }.items():
            assert connection.execute(f"SHOW {setting}").fetchone() == (value,)
        assert connection.execute("SELECT lower('Ä')").fetchone() == ("ä",)


def test_sockets_are_private_and_go_with_the_server(tmp_path: Path) -> None:
    with valkey(tmp_path) as url:
        sockets = Path(url.removeprefix("unix://")).parent
        assert sockets.stat().st_mode & 0o777 == 0o700
    assert not sockets.exists()


@pytest.mark.parametrize("victim", ["postmaster", "backend", "valkey"])
def test_a_killed_server_starts_again_with_its_data(tmp_path: Path, victim: str) -> None:
    with postgresql(tmp_path) as database_url, valkey(tmp_path):
        remember(database_url)
        with psycopg.connect(database_url) as connection:
            postmaster, cache = pids_of(tmp_path)
            backend = connection.info.backend_pid
            pid = {"postmaster": postmaster, "backend": backend, "valkey": cache}[victim]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not lives(pid))
            connection.close()
    assert_starts_with_its_data(tmp_path)


def test_a_start_waits_for_the_backends_of_a_killed_server(tmp_path: Path) -> None:
    with postgresql(tmp_path) as database_url:
        remember(database_url)
        postmaster = pid_of_postgresql(tmp_path)
        with psycopg.connect(database_url) as connection:
            backend = connection.info.backend_pid
            os.kill(backend, signal.SIGSTOP)
            os.kill(postmaster, signal.SIGKILL)
            connection.close()
    resume = subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {backend}"])
    with postgresql(tmp_path) as database_url:
        assert remembers(database_url)
    assert resume.wait() == 0
    assert "pre-existing shared memory block" in (tmp_path / "postgresql.log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_killed_parent_leaves_no_process(tmp_path: Path, outliving: list[int]) -> None:
    with parent(tmp_path) as process:
        database_url, _ = urls_of(process)
        remember(database_url)
        servers = pids_of(tmp_path)
        outliving += [*servers, *children_of(servers[0])]
        assert len(outliving) > len(servers)
        process.kill()
    wait_until(lambda: not any(map(lives, outliving)))
    assert_starts_with_its_data(tmp_path)


def test_servers_that_outlived_their_parent_are_replaced(
    tmp_path: Path, outliving: list[int]
) -> None:
    with parent(tmp_path, "without kernel help") as process:
        database_url, _ = urls_of(process)
        remember(database_url)
        outliving += pids_of(tmp_path)
        process.kill()
    time.sleep(0.2)
    assert all(map(lives, outliving))
    assert_starts_with_its_data(tmp_path)
    assert not any(map(lives, outliving))


def test_a_hanging_orphan_is_replaced(tmp_path: Path, outliving: list[int]) -> None:
    with parent(tmp_path, "without kernel help") as process:
        database_url, _ = urls_of(process)
        remember(database_url)
        outliving += pids_of(tmp_path)
        for pid in outliving:
            os.kill(pid, signal.SIGSTOP)
        process.kill()
    assert_starts_with_its_data(tmp_path)
    assert not any(map(lives, outliving))


def test_a_stale_pid_that_is_now_another_process_is_left_alone(tmp_path: Path) -> None:
    with postgresql(tmp_path) as database_url, valkey(tmp_path):
        remember(database_url)
        for pid in pids_of(tmp_path):
            os.kill(pid, signal.SIGKILL)
    owner = (tmp_path / "postgresql").stat()
    # Of the same owner, as PostgreSQL believes in no other.
    stranger = subprocess.Popen(["sleep", "60"], user=owner.st_uid if AS_ROOT else None)
    try:
        for pid_file in tmp_path.glob("*/*.pid"):
            _, *rest = pid_file.read_text().split("\n")
            pid_file.write_text("\n".join([str(stranger.pid), *rest]))
        assert_starts_with_its_data(tmp_path)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("content", ["", "\n", "nonsense\n"])
def test_a_spoilt_pid_file_does_no_harm(tmp_path: Path, content: str) -> None:
    with postgresql(tmp_path) as database_url:
        remember(database_url)
    (tmp_path / "postgresql" / "postmaster.pid").write_text(content)
    assert_starts_with_its_data(tmp_path)


def test_a_half_made_data_folder_is_healed(tmp_path: Path) -> None:
    with parent(tmp_path) as process:
        wait_until(lambda: any(tmp_path.glob("postgresql.new-*/base/*")))
        process.kill()
    assert not (tmp_path / "postgresql").exists()
    with postgresql(tmp_path) as database_url:
        remember(database_url)
    assert_starts_with_its_data(tmp_path)
    assert not any(tmp_path.glob("postgresql.new-*"))


def test_an_empty_data_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "postgresql").mkdir()
    with postgresql(tmp_path) as database_url:
        remember(database_url)


def test_strange_files_in_the_data_folder_are_not_removed(tmp_path: Path) -> None:
    precious = tmp_path / "postgresql" / "precious"
    precious.parent.mkdir()
    precious.touch()
    with (
        pytest.raises(EmbeddedServerError, match="PostgreSQL cannot be started"),
        postgresql(tmp_path),
    ):
        pass
    assert precious.exists()


def test_a_long_and_odd_path_works(tmp_path: Path) -> None:
    folder = tmp_path / ("long " * 40) / "odd % ? # ' \" ü" / ("longer" * 30)
    with postgresql(folder) as database_url:
        remember(database_url)
    assert_starts_with_its_data(folder)


def test_a_second_user_of_a_folder_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with parent(tmp_path) as process:
        urls_of(process)
        with pytest.raises(EmbeddedServerError, match=f"in use by process {process.pid}:"):
            exclusive(tmp_path).__enter__()
        process.communicate("")
    with exclusive(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_ctrl_c_reaches_only_the_parent(tmp_path: Path) -> None:
    with parent(tmp_path, "deaf to Ctrl-C") as process:
        database_url, cache_url = urls_of(process)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
        remember(database_url)
        assert pings(cache_url)
        process.communicate("")
    assert process.returncode == 0


def test_ctrl_c_stops_everything_in_order(tmp_path: Path) -> None:
    with parent(tmp_path) as process:
        urls_of(process)
        pids = pids_of(tmp_path)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(LONGEST_STOP)
    assert not any(map(lives, pids))
    assert "database system is shut down" in (tmp_path / "postgresql.log").read_text()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with postgresql(tmp_path):
        pass
    (tmp_path / "postgresql" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(EmbeddedServerError) as caught, postgresql(tmp_path):
        pass
    sentence, *log = str(caught.value).splitlines()
    assert sentence.startswith("PostgreSQL ended while it started, with status 1;")
    assert str(tmp_path / "postgresql.log") in sentence
    assert "database files are incompatible with server" in "\n".join(log)


def test_a_big_log_starts_anew(tmp_path: Path) -> None:
    log = tmp_path / "valkey.log"
    log.write_text("x" * 2_000_000)
    with valkey(tmp_path):
        assert log.stat().st_size < 100_000


def test_an_error_of_the_caller_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), valkey(tmp_path):
        raise FileNotFoundError


@pytest.mark.skipif(not AS_ROOT, reason="only root can make another user's folder")
def test_another_users_socket_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    sockets = socket_folder(tmp_path / "valkey")
    os.chown(sockets, ORDINARY_USER, ORDINARY_USER)
    try:
        with pytest.raises(EmbeddedServerError, match="another user"), valkey(tmp_path):
            pass
    finally:
        sockets.rmdir()


@pytest.mark.skipif(not AS_ROOT, reason="the other tests already run as an ordinary user")
def test_an_ordinary_user_is_served_and_root_goes_on_with_the_data() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        os.chown(folder, ORDINARY_USER, ORDINARY_USER)
        with parent(folder, str(ORDINARY_USER)) as process:
            database_url, cache_url = urls_of(process)
            remember(database_url)
            assert pings(cache_url)
            process.communicate("")
        assert process.returncode == 0
        assert_starts_with_its_data(folder)
        assert {path.stat().st_uid for path in folder.rglob("*")} == {ORDINARY_USER}
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(not AS_ROOT, reason="only as root does PostgreSQL run as somebody else")
def test_as_root_only_the_folders_in_the_way_are_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed, open_ = tmp_path / "closed", tmp_path / "closed" / "open"
    closed.mkdir(mode=0o700)
    open_.mkdir(mode=0o711)
    with caplog.at_level(logging.WARNING), postgresql(open_):
        assert closed.stat().st_mode & 0o777 == 0o701
        assert open_.stat().st_mode & 0o777 == 0o711
        assert (open_ / "postgresql").stat().st_uid != 0
    assert len(caplog.records) == 1
    assert f"Added o+x to {closed}" in caplog.text
