"""The commands as operators use them: what they print, how they end, what survives."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from dotenv import dotenv_values

from service.cli.parser import main
from tests.conftest import Servers
from tests.e2e.processes import (
    COMMAND,
    LOOPBACK,
    copy_of_the_project,
    free_port,
    run,
    service_process,
    started,
    status_of,
    wait_for,
    wait_until,
    workers_of,
)
from tests.factories import PASSWORD, new_secrets
from tests.stand_ins.smtp import SmtpServer, accept, refuse

ENDS_WITHIN = 5
"""Seconds that a signal may take to end everything."""


def post(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Send a body to a call that is expected to succeed; return the answer."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def is_alive(pid: int) -> bool:
    """Whether the process runs: one that has ended and waits for its parent does not."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_all_faulty_settings_are_told_at_once_without_a_traceback(
    environment: dict[str, str],
) -> None:
    faults = {"PORT": "high", "RATE_LIMIT_LOGIN": "often", "LOG_FORMAT": "xml"}
    done = run("serve", environment={**environment, **faults})
    assert done.returncode == 2
    assert [line.split()[0] for line in done.stderr.splitlines()[1:]] == sorted(faults)
    assert "Traceback" not in done.stderr


def test_without_its_secrets_serve_refuses_to_start(environment: dict[str, str]) -> None:
    done = run("serve", environment={**environment, **dict.fromkeys(new_secrets(), "")})
    assert done.returncode == 2
    assert all(f"{name} is not set." in done.stderr for name in new_secrets())


@pytest.mark.parametrize(
    "arguments", [["serve"], ["worker"], ["migrate"], ["jobs", "list"], ["keys", "rotate"]]
)
def test_an_env_file_that_is_not_there_is_told(
    environment: dict[str, str], arguments: list[str]
) -> None:
    done = run(*arguments, environment={**environment, "ENV_FILE": "/nowhere/secrets.env"})
    assert done.returncode == 2
    assert "ENV_FILE names /nowhere/secrets.env, which is not a file.\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_env_file_may_be_one_that_is_made(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    own = {**environment, "ENV_FILE": str(file)}
    assert run("keys", "generate", "--file", str(file), environment=own).returncode == 0
    assert set(dotenv_values(file)) == set(new_secrets())


@pytest.mark.parametrize("path", ["/nowhere/secrets.env", "/tmp"])
def test_rotating_the_keys_of_a_file_that_is_not_there_is_one_clear_line(
    environment: dict[str, str], path: str
) -> None:
    done = run("keys", "rotate", "--file", path, environment=environment)
    assert (done.returncode, done.stderr) == (1, f"There is no file {path}.\n")


@pytest.mark.parametrize("limit", ["many", "0", "-1", "1.5"])
def test_a_limit_that_is_none_is_told_with_what_it_may_be(
    environment: dict[str, str], limit: str
) -> None:
    done = run("jobs", "list", f"--limit={limit}", environment=environment)
    assert done.returncode == 2
    assert "--limit: must be between 1 and 1000000" in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_a_risk_is_told_once_at_start(
    environment: dict[str, str], tmp_path: Path, workers: str
) -> None:
    risky = {
        "WORKERS": workers,
        "PUBLIC_URL": "http://referrals.example.com",
        "SMTP_URL": "smtp://mail.example.com",
        "MAIL_FROM": "referrals@example.com",
        "SERVE_JOBS": "off",
    }
    file = tmp_path / "log"
    with file.open("w") as log, service_process(environment, log, **risky):
        pass
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    told = [line["message"].split()[0] for line in lines if line["level"] == "warning"]
    assert told == ["PUBLIC_URL", "ARGON2_MEMORY_KIB", "SMTP_URL"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_taken_port_is_one_clear_line(environment: dict[str, str], workers: str) -> None:
    with service_process(environment, WORKERS=workers) as service:
        done = run("serve", environment=service.environment)
    assert done.returncode == 1
    port = service.environment["PORT"]
    assert done.stderr == f"Cannot listen on {LOOPBACK}:{port}: Address already in use.\n"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_request_under_way_is_answered_after_sigterm(
    environment: dict[str, str], workers: str
) -> None:
    slow = {"ARGON2_MEMORY_KIB": "65536", "ARGON2_PASSES": "6", "WORKERS": workers}
    with service_process(environment, **slow) as service, ThreadPoolExecutor() as threads:
        url = f"{service.url}/api/v1/auth/register"
        body = {"email": "anna@example.com", "password": PASSWORD}
        answer = threads.submit(post, url, body)
        time.sleep(0.15)
        assert not answer.done()
        service.process.send_signal(signal.SIGTERM)
        assert answer.result()["email"] == "anna@example.com"
        assert service.process.wait(ENDS_WITHIN) == 0
    assert status_of(f"{service.url}/health/live") is None


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_last_requests_before_sigterm_are_in_the_log(
    environment: dict[str, str], tmp_path: Path, workers: str
) -> None:
    file = tmp_path / "log"
    with file.open("w") as log, service_process(environment, log, WORKERS=workers) as service:
        for _ in range(20):
            assert status_of(f"{service.url}/health/live") == 200
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(ENDS_WITHIN)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len([line for line in lines if line.get("route") == "/health/live"]) == 20


@pytest.mark.parametrize("workers", ["1", "2"])
def test_that_no_mail_is_sent_is_told_once_at_the_start(
    environment: dict[str, str], tmp_path: Path, workers: str
) -> None:
    mail = {"SMTP_URL": f"smtp://{LOOPBACK}:1", "MAIL_FROM": "referrals@example.com"}
    for variables, times in (({}, 1), (mail, 0)):
        file = tmp_path / "log"
        with (
            file.open("w") as log,
            service_process({**environment, **variables}, log, WORKERS=workers),
        ):
            pass
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        told = [line["message"] for line in lines if line["level"] == "warning"]
        assert len([line for line in told if "SMTP_URL is not set" in line]) == times, told


def test_a_killed_worker_is_replaced_and_the_service_goes_on(environment: dict[str, str]) -> None:
    with service_process(environment, WORKERS="2") as service:
        first = workers_of(service.process.pid)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        for _ in range(20):
            assert status_of(f"{service.url}/health/ready") == 200
        wait_until(
            lambda: len(set(workers_of(service.process.pid)) - {first[0]}) == 2,
            "the killed worker is not replaced",
        )


def test_the_workers_of_a_killed_parent_end(environment: dict[str, str]) -> None:
    with service_process(environment, WORKERS="2") as service:
        workers = workers_of(service.process.pid)
        service.process.kill()
        wait_until(lambda: not any(map(is_alive, workers)), "workers outlive their parent")


def test_metrics_are_summed_over_the_workers(environment: dict[str, str]) -> None:
    with service_process(environment, WORKERS="2") as service:
        for _ in range(40):
            status_of(f"{service.url}/openapi.json")
        # What the other worker has not written yet comes with its access log, a moment later.
        wait_until(lambda: _counted(service.url, "openapi") == [40], "requests are not counted")
        assert _counted(service.url, "openapi") == [40]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_metrics_have_a_port_of_their_own_beside_the_public_one(
    environment: dict[str, str], workers: str
) -> None:
    port = free_port()
    told = {**environment, "CORS_ORIGINS": "*"}
    with service_process(told, WORKERS=workers, METRICS_PORT=str(port)) as service:
        own = f"http://{LOOPBACK}:{port}"
        for _ in range(40):
            status_of(f"{service.url}/openapi.json")
        wait_until(lambda: _counted(own, "openapi") == [40], "requests are not counted")
        assert _counted(service.url, "openapi") == [40]
        request = urllib.request.Request(f"{own}/metrics", headers={"Origin": "https://a.example"})
        with urllib.request.urlopen(request) as response:
            assert response.headers["Access-Control-Allow-Origin"] is None
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        for path in ("/", "/api/v1/users/me", "/health/live", "/docs", "/metrics/"):
            assert status_of(f"{own}{path}") == 404, path
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(f"{own}/openapi.json")
        assert missing.value.headers["Content-Type"] == "application/problem+json"
        missing.value.close()
        if workers == "2":
            os.kill(workers_of(service.process.pid)[0], signal.SIGKILL)
        assert all(status_of(f"{own}/metrics") == 200 for _ in range(8))
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(ENDS_WITHIN) == 0
    assert status_of(f"{own}/metrics") is None


def test_a_taken_port_for_metrics_is_one_clear_line(environment: dict[str, str]) -> None:
    with service_process(environment) as service:
        taken = service.environment["PORT"]
        own = {"PORT": str(free_port()), "METRICS_PORT": taken}
        done = run("serve", environment={**service.environment, **own})
    assert done.returncode == 1
    assert done.stderr == f"Cannot listen on {LOOPBACK}:{taken}: Address already in use.\n"


def _counted(url: str, route: str) -> list[float]:
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("http_request_duration_seconds_count")]
    return [float(line.split()[-1]) for line in counts if route in line]


def test_an_admin_is_made_with_a_password_from_the_environment_or_from_standard_input(
    environment: dict[str, str],
) -> None:
    with service_process(environment) as service:
        told = {**service.environment, "ADMIN_PASSWORD": PASSWORD}
        assert run("admin", "create", "root@example.com", environment=told).returncode == 0
        done = run(
            "admin",
            "create",
            "other@example.com",
            environment=service.environment,
            input=f"{PASSWORD}\n",
        )
        assert done.stdout == "other@example.com is an admin.\n"
        for email in ("root@example.com", "other@example.com"):
            tokens = post(
                f"{service.url}/api/v1/auth/login", {"email": email, "password": PASSWORD}
            )
            request = urllib.request.Request(
                f"{service.url}/api/v1/admin/users",
                headers={"Authorization": f"Bearer {tokens['access_token']}"},
            )
            with urllib.request.urlopen(request) as response:
                assert response.status == 200

        again = run("admin", "create", "root@example.com", environment=told)
        assert (again.returncode, again.stderr) == (
            1,
            "An account with this email address already exists.\n",
        )
        weak = {**told, "ADMIN_PASSWORD": "password1"}
        refused = run("admin", "create", "third@example.com", environment=weak)
        assert (refused.returncode, refused.stderr) == (
            1,
            "This is one of the most common passwords.\n",
        )


def test_new_secrets_are_written_once_for_their_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    assert run("keys", "generate", "--file", str(file), environment={}).returncode == 0
    written = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    again = run("keys", "generate", "--file", str(file), environment={})
    assert "already exists; it was not changed" in again.stdout
    assert file.read_text() == written
    assert run("keys", "generate", environment={}).stdout.count("\n") == 3


def _mind_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Development:
    """`dev` in a copy of the project, without the settings of whoever runs the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = copy_of_the_project(folder)
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.log = folder / "dev.log"
        self.environment = {
            **os.environ,
            "DATABASE_URL": "",
            "REDIS_URL": "",
            "PORT": str(self.port),
            "PUBLIC_URL": self.url,
            "RATE_LIMIT_REGISTER": "off",
        }

    def start(self) -> "subprocess.Popen[str]":
        """Start it, and wait until it answers."""
        with self.log.open("w") as log:
            process = subprocess.Popen(
                [*COMMAND, "dev"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                # A background job of a shell has SIGINT ignored; a terminal's has not.
                preexec_fn=_mind_ctrl_c,  # noqa: PLW1509  # no threads here
            )
        try:
            wait_for(f"{self.url}/health/ready", process)
        except AssertionError as error:
            process.kill()
            raise AssertionError(self.log.read_text()) from error
        return process

    def register(self, email: str) -> None:
        post(f"{self.url}/api/v1/auth/register", {"email": email, "password": PASSWORD})

    def knows(self, email: str) -> bool:
        """Whether the account can sign in."""
        body = {"email": email, "password": PASSWORD}
        return "access_token" in post(f"{self.url}/api/v1/auth/login", body)


@pytest.fixture
def development(tmp_path: Path) -> Development:
    return Development(tmp_path)


def servers_in(folder: Path) -> list[int]:
    """Return the processes whose command line or working folder is in `folder`."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
        except OSError:
            continue
    return [pid for pid in found if is_alive(pid)]


def test_ctrl_c_ends_everything_and_the_data_survives(development: Development) -> None:
    process = development.start()
    assert f"{development.url}/docs" in development.log.read_text()
    development.register("anna@example.com")
    assert len(servers_in(development.folder)) > 1

    process.send_signal(signal.SIGINT)
    assert process.wait(ENDS_WITHIN) == 0
    assert servers_in(development.folder) == []

    process = development.start()
    assert development.knows("anna@example.com")
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENDS_WITHIN) == 0


def test_after_kill_9_the_next_start_just_works(development: Development) -> None:
    process = development.start()
    development.register("anna@example.com")
    process.kill()
    process.wait()
    process = development.start()
    try:
        assert development.knows("anna@example.com")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(ENDS_WITHIN)


def test_a_second_start_is_refused_and_commands_find_the_servers_of_the_first(
    development: Development,
) -> None:
    process = development.start()
    try:
        second = run("dev", environment=development.environment, cwd=development.folder)
        assert second.returncode == 1
        assert second.stderr.startswith(".data is already in use by process")
        assert "Traceback" not in second.stderr
        told = {**development.environment, "ADMIN_PASSWORD": PASSWORD}
        made = run("admin", "create", "root@example.com", environment=told, cwd=development.folder)
        assert made.stdout == "root@example.com is an admin.\n"
        assert development.knows("root@example.com")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(ENDS_WITHIN)


def test_a_faulty_setting_is_told_before_any_server_starts(development: Development) -> None:
    told = {**development.environment, "WORKERS": "many"}
    done = run("dev", environment=told, cwd=development.folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Invalid settings:\nWORKERS must be a whole number.\n"


def test_migrate_says_what_it_has_applied(environment: dict[str, str]) -> None:
    done = run("migrate", environment=environment)
    assert (done.returncode, done.stdout) == (0, "nothing to apply\n")
    away = run("migrate", environment={**environment, "DATABASE_URL": "postgresql://127.0.0.1:1/x"})
    assert away.returncode == 1
    assert away.stderr.startswith("PostgreSQL cannot be reached:")
    assert "Traceback" not in away.stderr


async def test_the_ledger_is_checked_and_each_difference_told(
    environment: dict[str, str], database: asyncpg.Connection
) -> None:
    checked = await asyncio.to_thread(run, "ledger", "check", environment=environment)
    assert (checked.returncode, checked.stdout) == (0, "No differences found.\n")
    participant_id = uuid4()
    await database.execute(
        "INSERT INTO participants (participant_id, programme_id, external_hash, created_at)"
        " SELECT $1, programme_id, 'hash', now() FROM programmes",
        participant_id,
    )
    await database.execute(
        "INSERT INTO balances SELECT $1, 'EUR', programme_id, 7 FROM programmes", participant_id
    )
    checked = await asyncio.to_thread(run, "ledger", "check", environment=environment)
    assert checked.returncode == 1
    assert checked.stdout == (f"{participant_id}\tbalance in EUR is not the sum of its transfers\n")
    assert checked.stderr == "1 difference found.\n"


async def test_jobs_are_done_by_a_worker_and_what_it_gives_up_is_listed_and_tried_again(
    environment: dict[str, str],
) -> None:
    async with SmtpServer().serving() as smtp:
        mail = {"SMTP_URL": smtp.url, "MAIL_FROM": "referrals@example.com"}
        with service_process({**environment, **mail, "SERVE_JOBS": "off"}) as service:

            async def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
                return await asyncio.to_thread(run, *arguments, environment=service.environment)

            smtp.play(refuse("550 5.1.1 No such user"))
            body = {"email": "anna@example.com", "password": PASSWORD}
            await asyncio.to_thread(post, f"{service.url}/api/v1/auth/register", body)
            listed = (await command("jobs", "list")).stdout
            job_id, kind, state, tries, error = listed.rstrip("\n").split("\t")
            assert (kind, state[:4], tries, error) == ("mail", "due ", "0 attempts", "")
            assert "anna" not in listed
            assert smtp.connections == 0  # nobody does them here

            with started([*COMMAND, "worker"], service.environment) as worker:
                with psycopg.connect(service.environment["DATABASE_URL"], autocommit=True) as rows:
                    given_up = "SELECT FROM jobs WHERE parked_at IS NOT NULL"
                    while not rows.execute(given_up).rowcount:
                        assert worker.poll() is None
                        await asyncio.sleep(0.05)
                parked = (await command("jobs", "list", "--parked")).stdout
                assert parked.startswith(f"{job_id}\tmail\tparked 20")
                assert parked.endswith("Z\t1 attempt\tSMTPRecipientsRefused 550\n")

                smtp.play(accept)
                nobodys = str(uuid4())
                missed = await command("jobs", "retry", nobodys)
                assert missed.returncode == 1
                assert missed.stderr == f"There is no parked job {nobodys}.\n"
                assert (await command("jobs", "retry", job_id)).stdout == "1 job will be retried.\n"
                await smtp.wait_for(1, timeout=10)
                worker.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(worker.wait, ENDS_WITHIN) == 0
    assert smtp.mails[0].rcpt_tos == ("anna@example.com",)


@pytest.mark.parametrize("command", [("jobs", "list"), ("clients", "list")])
def test_a_database_without_tables_is_one_clear_line(
    command: tuple[str, str], servers: Servers, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    name = f"test_{uuid4().hex}"
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            url = urlsplit(servers.database_url)._replace(path=f"/{name}").geturl()
            monkeypatch.setenv("DATABASE_URL", url)
            assert main(command) == 1
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    told = capsys.readouterr().err
    assert told == "The database has no tables yet: run `python -m service migrate`.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--limit", "0"),
        ("list", "--limit", "99999999999999999999"),
        ("list", "--limit", "many"),
        ("retry",),
        ("retry", "one"),
        ("retry", str(uuid4()), "--all"),
    ],
)
def test_wrong_arguments_are_explained(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["jobs", *arguments])
    assert ended.value.code == 2
    assert re.search(r"error: (argument|one of the arguments) ", capsys.readouterr().err)


def test_what_waits_is_measured_whichever_worker_is_asked(environment: dict[str, str]) -> None:
    mail = {"SMTP_URL": f"smtp://{LOOPBACK}:{free_port()}", "MAIL_FROM": "referrals@example.com"}
    told = {**environment, **mail, "SERVE_JOBS": "off"}
    with service_process(told, WORKERS="2") as service:
        for name in ("anna", "bert"):
            body = {"email": f"{name}@example.com", "password": PASSWORD}
            post(f"{service.url}/api/v1/auth/register", body)
        with psycopg.connect(service.environment["DATABASE_URL"]) as connection:
            connection.execute("UPDATE jobs SET created_at = created_at - interval '1 minute'")
            connection.execute(
                "INSERT INTO jobs (job_id, kind, payload, created_at, due_at, parked_at)"
                " VALUES (gen_random_uuid(), 'enrich', '{}', now(), now(), now())"
            )
        for _ in range(8):
            with urllib.request.urlopen(f"{service.url}/metrics") as response:
                lines = response.read().decode().splitlines()
            measured = dict(line.rsplit(" ", 1) for line in lines if line.startswith("jobs_"))
            assert float(measured['jobs_pending{kind="mail"}']) == 2
            assert float(measured['jobs_parked{kind="mail"}']) == 0
            assert 60 <= float(measured['jobs_oldest_seconds{kind="mail"}']) < 90
            assert float(measured['jobs_pending{kind="enrich"}']) == 0
            assert float(measured['jobs_parked{kind="enrich"}']) == 1
            assert float(measured['jobs_oldest_seconds{kind="enrich"}']) == 0


def test_an_unknown_command_is_explained() -> None:
    with started([*COMMAND, "help"], {}, stderr=subprocess.PIPE) as process:
        assert process.wait(10) == 2
        assert process.stderr is not None
        assert "invalid choice" in process.stderr.read()
