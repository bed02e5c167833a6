"""What operators do to accounts and clients beside a running service, with the command line."""

import json
import logging
import os
import pty
import re
import select
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from service.cli.parser import main
from tests.e2e.peers import new_person
from tests.e2e.processes import COMMAND, Service, run, service_process, wait_until
from tests.factories import PASSWORD

CALLBACK = "https://app.example/callback"


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[Service]:
    with service_process(environment) as service:
        yield service


@dataclass(frozen=True)
class Operator:
    """Whoever types the commands; and what they see of the service."""

    service: Service

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return run(*arguments, environment=self.service.environment)

    def does(self, *arguments: str) -> str:
        """Run a command that succeeds; return what it prints."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def fails(self, *arguments: str) -> str:
        """Run a command that is refused in one line; return that."""
        done = self.run(*arguments)
        assert (done.returncode, done.stdout) == (1, ""), done
        [line] = done.stderr.splitlines()
        return line

    def answers(self, *arguments: str, answer: str) -> str:
        """Run a command on a terminal, and answer its question; return what is to be read there."""
        terminal, end = pty.openpty()
        environment = {**os.environ, **self.service.environment}
        command = [*COMMAND, *arguments]
        with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment) as asked:
            os.close(end)
            read = ""
            while asked.poll() is None or select.select([terminal], [], [], 0)[0]:
                if not select.select([terminal], [], [], 0.1)[0]:
                    continue
                try:
                    read += os.read(terminal, 4096).decode()
                except OSError:  # the other end is closed
                    break
                if read.endswith("[y/N] "):
                    os.write(terminal, f"{answer}\n".encode())
        os.close(terminal)
        return read

    def call(
        self, method: str, path: str, token: str | None = None, body: Any = None
    ) -> tuple[int, Any]:
        """Return the status and the document of an answer of the API."""
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        return self._send(
            urllib.request.Request(f"{self.service.url}/api/v1{path}", data, headers, method=method)
        )

    def oauth(self, path: str, **form: str) -> tuple[int, Any]:
        """Return the status and the document of an answer of the authorization server."""
        data = urllib.parse.urlencode(form).encode()
        return self._send(urllib.request.Request(f"{self.service.url}/oauth/{path}", data))

    def log_in(self, person: Mapping[str, str]) -> dict[str, Any]:
        status, tokens = self.call("POST", "/auth/login", body=person)
        assert status == 200, tokens
        return dict(tokens)

    def new_client(self, *options: str) -> dict[str, str]:
        """Make a client; return what is said of it."""
        lines = self.does("clients", "create", "A client", *options).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def confirm(self, person: Mapping[str, str]) -> None:
        """Have the email address confirmed, as with the mail's token."""
        with psycopg.connect(self.service.environment["DATABASE_URL"]) as connection:
            connection.execute(
                "UPDATE users SET email_confirmed_at = now() WHERE email = %s", [person["email"]]
            )

    @staticmethod
    def _send(request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                body = response.read()
                return response.status, json.loads(body) if body else None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


@pytest.fixture
def operator(service: Service) -> Operator:
    return Operator(service)


@pytest.fixture
def operator_alone(environment: dict[str, str]) -> Iterator[Operator]:
    """The operator of a service in which nobody is an admin yet."""
    with service_process(environment) as service:
        yield Operator(service)


def in_the_log(stderr: str) -> list[dict[str, Any]]:
    """Return the log lines about security that a command has written."""
    lines = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if line["logger"] == "service.security"]


# Clients


def test_what_a_client_may_do_is_said_when_it_is_made(operator: Operator) -> None:
    public = operator.new_client("--redirect-uri", CALLBACK)
    assert set(public) == {"client_id", "may"}
    assert public["may"].startswith('"For itself: nothing. For users who allow it: See your ')
    assert "Manage the accounts" not in public["may"]

    server = operator.new_client(
        "--confidential", "--redirect-uri", CALLBACK, "--scope", "codes:read"
    )
    assert server["may"] == (
        '"For itself: nothing. For users who allow it: See your referral code. Nothing else."'
    )
    machine = operator.new_client("--confidential", "--scope", "referrals:read")
    assert machine["may"] == (
        "\"For itself: See who registered with anyone's code. For users who allow it: nothing. "
        'Nothing else."'
    )
    both = operator.new_client(
        "--confidential", "--redirect-uri", CALLBACK, "--own-scope", "admin", "--resource-server"
    )
    assert "For itself: Manage the accounts of all users, admins included." in both["may"]
    assert "It may introspect the tokens of all clients. Nothing else." in both["may"]

    made = [one["client_id"] for one in (public, server, machine, both)]
    lines = [line.split("\t") for line in operator.does("clients", "list").splitlines()]
    listed = [line for line in lines if line[0] in made]
    assert [line[0] for line in listed] == made
    users = "for users: profile codes:read codes:write referrals:read"
    refreshing = "grants: authorization_code refresh_token"
    name, no, yes = "'A client'", "resource server: no", "resource server: yes"
    assert [line[1:] for line in listed] == [
        ["public", name, refreshing, users, "for itself: none", no, CALLBACK],
        [
            "confidential",
            name,
            refreshing,
            "for users: codes:read",
            "for itself: none",
            no,
            CALLBACK,
        ],
        [
            "confidential",
            name,
            "grants: client_credentials",
            "for users: none",
            "for itself: referrals:read",
            no,
        ],
        [
            "confidential",
            name,
            "grants: authorization_code client_credentials refresh_token",
            users,
            "for itself: admin",
            yes,
            CALLBACK,
        ],
    ]


@pytest.fixture
def kept_logging() -> Iterator[None]:
    """Have the handlers of the tests back after a command that runs in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("kept_logging")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "A public client needs a redirect URI."),
        (("--confidential",), "The client could do nothing."),
        (("--confidential", "--scope", ""), "The client could do nothing."),
        (("--confidential", "--scope", "profile"), "profile means nothing to a client"),
        (("--confidential", "--own-scope", "codes:write"), "codes:write means nothing"),
        (("--redirect-uri", CALLBACK, "--own-scope", "admin"), "keep no secret"),
        (("--redirect-uri", CALLBACK, "--resource-server"), "keep no secret"),
        (("--redirect-uri", CALLBACK, "--scope", ""), "that users can allow"),
        (("--redirect-uri", "http://app.example"), "not an address that browsers"),
    ],
)
def test_a_client_that_makes_no_sense_is_not_made(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: str,
) -> None:
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    assert main(["clients", "create", "Nonsense", *options]) == 1
    told = capsys.readouterr()
    assert (told.out, len(told.err.splitlines())) == ("", 1)
    assert words in told.err
    assert main(["clients", "list"]) == 0
    assert "Nonsense" not in capsys.readouterr().out


def test_an_unknown_scope_is_told_with_those_there_are(operator: Operator) -> None:
    done = operator.run("clients", "create", "A client", "--scope", "everything")
    assert done.returncode == 2
    assert "'everything' is not a scope; the scopes are profile codes:read" in done.stderr


def test_with_a_client_its_tokens_end_before_the_command_does(operator: Operator) -> None:
    client = operator.new_client("--confidential", "--scope", "admin")
    own = {"client_id": client["client_id"], "client_secret": client["client_secret"]}
    _, tokens = operator.oauth("token", grant_type="client_credentials", **own)
    assert operator.call("GET", "/admin/users", tokens["access_token"])[0] == 200
    done = operator.run("clients", "delete", client["client_id"])
    assert operator.call("GET", "/admin/users", tokens["access_token"])[0] == 401, "at once"
    assert done.stdout == f"{client['client_id']} is deleted, and its sessions have ended (1).\n"
    [line] = in_the_log(done.stderr)
    assert (line["message"], line["client"]) == ("client.deleted", client["client_id"])
    status, refused = operator.oauth("token", grant_type="client_credentials", **own)
    assert (status, refused["error"]) == (401, "invalid_client")
    assert operator.fails("clients", "delete", client["client_id"]) == (
        f"There is no client {client['client_id']}."
    )


def test_a_client_is_changed_and_what_it_loses_its_tokens_lose_at_once(operator: Operator) -> None:
    client = operator.new_client("--confidential", "--scope", "referrals:read admin")
    client_id = client["client_id"]
    own = {"client_id": client_id, "client_secret": client["client_secret"]}
    _, tokens = operator.oauth("token", grant_type="client_credentials", **own)
    token = tokens["access_token"]
    assert operator.call("GET", "/admin/users", token)[0] == 200

    told = operator.does("clients", "update", client_id, "--name", "Shop", "--resource-server")
    assert "introspect" in told
    assert operator.call("GET", "/admin/users", token)[0] == 200
    told = operator.does("clients", "update", client_id, "--scope", "referrals:read")
    assert "its sessions have ended (1)" in told
    assert operator.call("GET", "/admin/users", token)[0] == 401
    operator.does("clients", "update", client_id, "--redirect-uri", CALLBACK)
    assert listed_of(operator, client_id)[2:] == [
        "'Shop'",
        "grants: authorization_code client_credentials refresh_token",
        "for users: profile codes:read codes:write referrals:read",
        "for itself: referrals:read",
        "resource server: yes",
        CALLBACK,
    ]
    operator.does("clients", "update", client_id, "--no-resource-server", "--own-scope", "")
    assert listed_of(operator, client_id)[5:7] == ["for itself: none", "resource server: no"]

    assert "could do nothing" not in operator.does(
        "clients", "update", client_id, "--scope", "profile"
    )
    assert "nothing to change" in operator.fails("clients", "update", client_id)
    assert "There is no client" in operator.fails("clients", "update", "nobody", "--name", "x")
    assert "means nothing" in operator.fails(
        "clients", "update", client_id, "--own-scope", "profile"
    )


def listed_of(operator: Operator, client_id: str) -> list[str]:
    """Return what the list says of a client."""
    lines = [line.split("\t") for line in operator.does("clients", "list").splitlines()]
    [found] = [line for line in lines if line[0] == client_id]
    return found


def test_a_secret_is_replaced_and_printed_once(operator: Operator) -> None:
    client = operator.new_client("--confidential", "--scope", "referrals:read")
    client_id, first = client["client_id"], client["client_secret"]

    def works(secret: str) -> bool:
        status, _ = operator.oauth(
            "token", grant_type="client_credentials", client_id=client_id, client_secret=secret
        )
        return bool(status == 200)

    done = operator.run("clients", "rotate-secret", client_id)
    secret_line, until = done.stdout.splitlines()
    second = secret_line.removeprefix("client_secret=")
    assert "The secret is not shown again." in done.stderr
    assert re.fullmatch(r"The previous secret works until 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ.", until)
    assert (works(first), works(second)) == (True, True)
    assert "--overlap 0" in operator.fails("clients", "rotate-secret", client_id)
    replaced = operator.does("clients", "rotate-secret", client_id, "--overlap", "0")
    assert replaced.splitlines()[1] == "The previous secret no longer works."
    third = replaced.splitlines()[0].removeprefix("client_secret=")
    assert (works(first), works(second), works(third)) == (False, False, True)
    [line] = in_the_log(done.stderr)
    assert (line["message"], line["reason"]) == ("client.updated", "secret-replaced")
    for wrong in ("-1", "many", "1000000"):
        assert (
            operator.run("clients", "rotate-secret", client_id, "--overlap", wrong).returncode == 2
        )


def test_without_redis_url_a_running_service_learns_of_it_all_the_same(operator: Operator) -> None:
    client = operator.new_client("--confidential", "--scope", "admin")
    own = {"client_id": client["client_id"], "client_secret": client["client_secret"]}
    _, tokens = operator.oauth("token", grant_type="client_credentials", **own)
    assert operator.call("GET", "/admin/users", tokens["access_token"])[0] == 200
    alone = {"DATABASE_URL": operator.service.environment["DATABASE_URL"], "REDIS_URL": ""}
    done = run("clients", "delete", client["client_id"], environment=alone)
    assert done.returncode == 0, done.stderr
    wait_until(
        lambda: operator.call("GET", "/admin/users", tokens["access_token"])[0] == 401,
        "nobody has told the service",
    )


# Admins


def test_only_who_has_confirmed_the_address_is_promoted(operator: Operator) -> None:
    person = new_person(operator.service)
    squatter = operator.log_in(person)
    refused = operator.fails("admin", "promote", person["email"])
    assert "Nobody has confirmed" in refused
    assert "--unconfirmed" in refused
    needs_a_yes = operator.fails("admin", "promote", person["email"], "--unconfirmed")
    assert needs_a_yes.endswith("Answer on a terminal, or add --yes.")
    for no in ("", "no"):
        read = operator.answers("admin", "promote", person["email"], "--unconfirmed", answer=no)
        assert "Nothing was changed." in read
    assert operator.call("GET", "/users/me", squatter["access_token"])[1]["role"] == "user"

    operator.confirm(person)
    done = operator.run("admin", "promote", person["email"].upper())
    assert done.stdout.endswith("is an admin, and has to sign in again.\n")
    assert operator.call("GET", "/users/me", squatter["access_token"])[0] == 401, "at once"
    body = {"refresh_token": squatter["refresh_token"]}
    assert operator.call("POST", "/auth/refresh", body=body)[0] == 401
    told = [line["message"] for line in in_the_log(done.stderr)]
    assert told == ["admin.promoted", "session.ended"]
    assert person["email"] not in done.stderr
    token = operator.log_in(person)["access_token"]
    assert operator.call("GET", "/admin/users", token)[0] == 200
    assert "already" in operator.does("admin", "promote", person["email"])
    assert operator.fails("admin", "promote", "nobody@example.com") == "There is no such user."


def test_who_insists_is_asked_and_promotes_all_the_same(operator: Operator) -> None:
    one, other = new_person(operator.service), new_person(operator.service)
    email = one["email"]
    read = operator.answers("admin", "promote", email, "--unconfirmed", answer="y")
    assert "a stranger may have registered it" in read
    assert "is an admin" in read
    operator.does("admin", "promote", other["email"], "--unconfirmed", "--yes")
    lines = [line.split("\t") for line in operator.does("admin", "list").splitlines()]
    listed = [line for line in lines if line[0] in {email, other["email"]}]
    assert [line[0] for line in listed] == [email, other["email"]]
    assert all(re.fullmatch(r"since 20\d\d-.*Z", line[2]) for line in listed)
    assert [line[3:] for line in listed] == [["not confirmed", "enabled"]] * 2


def test_the_last_admin_stays_whatever_an_operator_types(operator_alone: Operator) -> None:
    operator = operator_alone
    person = new_person(operator.service)
    email = person["email"]
    operator.does("admin", "promote", email, "--unconfirmed", "--yes")
    for command in (
        ("admin", "demote", email),
        ("users", "disable", email),
        ("users", "erase", email, "--yes"),
    ):
        assert operator.fails(*command) == "This is the last active admin."
    second = new_person(operator.service)
    operator.does("admin", "promote", second["email"], "--unconfirmed", "--yes")
    token = operator.log_in(person)["access_token"]
    assert operator.call("GET", "/admin/users", token)[0] == 200
    done = operator.run("admin", "demote", email)
    assert done.returncode == 0
    assert operator.call("GET", "/admin/users", token)[0] == 401
    told = [line["message"] for line in in_the_log(done.stderr)]
    assert told == ["session.ended", "admin.demoted"]
    assert operator.fails("admin", "demote", email) == "There is no admin with this email address."


# Accounts


def test_an_account_is_found_by_its_address_its_id_and_its_hash_in_the_log(
    operator: Operator,
) -> None:
    referrer, person = new_person(operator.service), new_person(operator.service)
    tokens = operator.log_in(referrer)
    code = {"expires_in_days": 30, "code": "FOUND-2026"}
    assert operator.call("POST", "/referral-code", tokens["access_token"], code)[0] == 201
    email = referrer["email"]
    found = dict(
        line.split("=", 1)
        for line in operator.does("users", "find", email).split("\n\n")[0].split("\n")
    )
    assert set(found) == {
        *("id", "email", "role", "confirmed", "disabled", "created", "referrer", "code"),
        "log_hash",
    }
    assert (found["id"], found["email"]) == (tokens["user_id"], email)
    assert (found["role"], found["confirmed"], found["disabled"]) == ("user", "no", "no")
    assert found["code"].startswith("FOUND-2026 until 20")
    by_address = operator.does("users", "find", email)
    for way in (email.upper(), found["id"], found["log_hash"], found["log_hash"].upper()):
        assert operator.does("users", "find", way) == by_address

    operator.call("POST", "/auth/login", body={"email": email, "password": "wrong"})
    both = operator.does("users", "find", email, person["email"])
    assert both.count("log_hash=") == 2
    done = operator.run("users", "find", email, "nobody@example.com", str(uuid4()), "0" * 16, "x y")
    assert done.returncode == 1
    assert done.stdout == by_address
    assert len(done.stderr.splitlines()) == 4


def test_an_account_is_disabled_enabled_and_erased(operator: Operator) -> None:
    person = new_person(operator.service)
    email = person["email"]
    tokens = operator.log_in(person)
    token, user_id = tokens["access_token"], tokens["user_id"]
    assert operator.call("GET", "/users/me", token)[0] == 200
    done = operator.run("users", "disable", email)
    assert done.stdout == f"{email} is disabled.\n"
    assert operator.call("GET", "/users/me", token)[0] == 401, "at once"
    ended, line = in_the_log(done.stderr)
    assert (ended["message"], ended["reason"]) == ("session.ended", "account-disabled")
    assert (line["message"], line["reason"]) == ("account.disabled", "operator")
    assert operator.call("POST", "/auth/login", body=person)[0] == 403
    assert operator.does("users", "enable", user_id) == f"{email} is enabled.\n"
    assert operator.call("POST", "/auth/login", body=person)[0] == 200

    refused = operator.fails("users", "erase", email)
    assert refused.startswith(f"Erase {email} ({user_id}) for good?")
    assert "Nothing was changed." in operator.answers("users", "erase", email, answer="n")
    assert operator.call("POST", "/auth/login", body=person)[0] == 200
    assert f"{user_id} is erased." in operator.answers("users", "erase", email, answer="Yes")
    assert operator.call("POST", "/auth/login", body=person)[0] == 401
    for command in ("disable", "enable", "export", "erase"):
        assert operator.fails("users", command, email) == f"There is no account {email}."
        assert operator.fails("users", command, user_id) == f"There is no account {user_id}."


def test_all_that_is_held_about_a_person_is_exported_and_no_secret(operator: Operator) -> None:
    person = new_person(operator.service)
    tokens = operator.log_in(person)
    code = {"expires_in_days": 30, "code": "SPRING-2026"}
    operator.call("POST", "/referral-code", tokens["access_token"], code)
    referred = {
        "email": f"{uuid4().hex}@example.com",
        "password": PASSWORD,
        "referral_code": "SPRING-2026",
    }
    _, referral = operator.call("POST", "/auth/register", body=referred)
    operator.call("POST", "/auth/password/forgot", body={"email": person["email"]})
    text = operator.does("users", "export", person["email"])
    told = json.loads(text)
    assert set(told) == {
        *("account", "identities", "sessions", "granted_to_clients", "mails_under_way"),
        *("account_changes", "unconfirmed_registrations", "security_events", "enrichment"),
        *("referral_codes", "referral", "referrals"),
        *("participant", "signals", "decisions", "events", "rewards", "balances", "transfers"),
    }
    assert told["account"]["id"] == tokens["user_id"]
    assert told["account"]["email"] == person["email"]
    assert told["account"]["has_password"] is True
    assert [one["client_id"] for one in told["sessions"]] == ["first-party"]
    [code_told] = told["referral_codes"]
    assert (code_told["code"], code_told["uses"]) == ("SPRING-2026", 1)
    [referral_told] = told["referrals"]
    assert referral_told["id"] == referral["id"]
    assert told["participant"]["referrals_qualified"] == 1
    assert referred["email"] not in text, "others' addresses are theirs"
    assert "sign_in.succeeded" in [one["event"] for one in told["security_events"]]
    for secret in ("argon2", "hash", tokens["refresh_token"], tokens["access_token"]):
        assert secret not in text
    other = json.loads(operator.does("users", "export", referred["email"]))
    assert other["referral"]["referrer_id"] == tokens["user_id"]
    assert other["referral"]["state"] == "qualified"
    assert [one["reason"] for one in other["decisions"]] == ["signed-up", "qualified"]
    assert other["referrals"] == []
