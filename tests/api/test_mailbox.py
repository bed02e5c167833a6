"""The mailbox of `make run`: there for developers, and nowhere else."""

import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from service.api.mailbox import show_mailbox
from service.domain.errors import NotAllowed
from service.settings.settings import Settings, read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.api.mailing import confirm
from tests.api.wire import send
from tests.factories import Api, running

MAILBOX = "//dev/mailbox"

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
async def developing(
    environment: dict[str, str], tmp_path: Path, database: asyncpg.Connection, redis: object
) -> AsyncIterator[Api]:
    """A service whose mails go into a folder, under a name that a page must not believe."""
    named = {**environment, "SERVICE_NAME": "<script>alert(1)</script>"}
    async with running(read_settings(named, tmp_path / "mailbox")) as api:
        yield api


@pytest.fixture
def of_developers(environment: dict[str, str], tmp_path: Path) -> Settings:
    """The settings of `make run`, under a public name."""
    public = {**environment, "PUBLIC_URL": "http://referrals.example.com:8080"}
    return read_settings(public, tmp_path / "mailbox")


async def registered(api: Api, database: asyncpg.Connection, *emails: str) -> None:
    """Register people, and wait until their mails are in the mailbox."""
    for email in emails:
        assert (await api.register(email)).status == 201
    await no_jobs(database)


async def test_before_the_first_mail_it_says_so(developing: Api) -> None:
    answer = await developing.get(MAILBOX)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"No mail yet." in answer.body
    assert (await developing.get(MAILBOX, headers={"Accept": "application/json"})).json() == {
        "items": []
    }


async def test_the_newest_mails_are_shown_with_their_tokens(
    developing: Api, database: asyncpg.Connection
) -> None:
    await registered(developing, database, "anna@example.com", "bert@example.com")
    answer = await developing.get(MAILBOX, headers={"Accept": "application/json"})
    assert answer.headers["Content-Type"] == "application/json"
    items = answer.json()["items"]
    assert [item["to"] for item in items] == ["bert@example.com", "anna@example.com"]
    assert set(items[0]) == {"to", "subject", "date", "text"}
    token = items[1]["text"].partition("confirm:")[2].split()[0]
    assert (await confirm(developing, token)).status == 204


async def test_a_mail_is_shown_as_text_on_a_page_that_runs_nothing(
    developing: Api, database: asyncpg.Connection
) -> None:
    await registered(developing, database, "anna@example.com")
    answer = await developing.get(MAILBOX)
    page = answer.body.decode()
    assert "To anna@example.com" in page
    assert "<h2>Confirm your email address for &lt;script&gt;alert(1)&lt;/script&gt;</h2>" in page
    assert "<script" not in page
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'nonce-")
    assert "script-src" not in policy
    assert answer.headers["Cache-Control"] == "no-store"


async def test_it_is_not_there_in_production(
    api: Api, mail_environment: dict[str, str], tmp_path: Path
) -> None:
    """Else everybody would read everybody's tokens."""
    assert_problem(await api.get(MAILBOX), 404, "not-found")
    # Nor where mails go to a mail server, although there is a folder for them.
    settings = read_settings(mail_environment, tmp_path / "mailbox")
    async with running(settings) as with_smtp:
        assert_problem(await with_smtp.get(MAILBOX), 404, "not-found")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost.:8080",
        "127.0.0.1",
        "127.0.0.1:9",
        "[::1]",
        "[::1]:8080",
        "referrals.example.com",
        "Referrals.Example.COM.:8080",
    ],
)
async def test_it_answers_for_a_name_of_this_machine(
    of_developers: Settings, database: asyncpg.Connection, redis: object, host: str
) -> None:
    async with running(of_developers) as api:
        assert (await api.get(MAILBOX, headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param([b"evil.example"], id="DNS rebinding"),
        pytest.param([b"evil.example:8080"], id="with a port"),
        pytest.param([b"localhost.evil.example"], id="a name that begins with ours"),
        pytest.param([b"evil.example/localhost"], id="a path"),
        pytest.param([b"localhost@evil.example"], id="a user"),
        pytest.param([b"localhost:8080@evil.example"], id="a password"),
        pytest.param([b"evil.example#localhost"], id="a fragment"),
        pytest.param([b"localhost:port"], id="a word for a port"),
        pytest.param([b"localhost.."], id="two dots"),
        pytest.param([b"10.0.0.1"], id="another address"),
        pytest.param([b"[::1"], id="half a bracket"),
        pytest.param([b"::1"], id="no brackets"),
        pytest.param([b"localhost, evil.example"], id="two in one"),
        pytest.param([b"localhost", b"evil.example"], id="two"),
        pytest.param([b""], id="empty"),
        pytest.param([], id="none"),
    ],
)
async def test_it_does_not_answer_for_a_name_that_others_can_point_here(
    of_developers: Settings, database: asyncpg.Connection, redis: object, hosts: list[bytes]
) -> None:
    """A page of evil.example whose name now leads to loopback sends that name."""
    lines = [b"GET /dev/mailbox HTTP/1.1", b"Connection: close"]
    raw = b"\r\n".join([*lines, *(b"Host: " + host for host in hosts), b"", b""])
    async with running(of_developers) as api:
        answer = await send(api, raw)
    status, code = (403, "not-allowed") if len(hosts) == 1 else (400, "bad-request")
    assert_problem(answer, status, code)


async def test_it_does_not_answer_http_1_0_without_a_host(developing: Api) -> None:
    assert_problem(await send(developing, b"GET /dev/mailbox HTTP/1.0\r\n\r\n"), 403, "not-allowed")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "203.0.113.9"},
        {"X-Forwarded-For": "127.0.0.1, 203.0.113.9"},
        {"X-Forwarded-For": "203.0.113.9, 127.0.0.1"},
        {"X-Forwarded-For": ""},
        {"X-Real-IP": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9"},
    ],
)
async def test_it_does_not_answer_what_was_forwarded_from_elsewhere(
    developing: Api, headers: dict[str, str]
) -> None:
    """A proxy or a tunnel on this machine has a peer on loopback too."""
    for method in ("GET", "HEAD"):
        assert (await developing.call(method, MAILBOX, headers=headers)).status == 403


async def test_it_answers_what_was_forwarded_on_this_machine(developing: Api) -> None:
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1, 127.0.0.2"):
        answer = await developing.get(MAILBOX, headers={"X-Forwarded-For": address})
        assert answer.status == 200


@pytest.mark.parametrize("peer", ["192.0.2.1", "::ffff:192.0.2.1", "fe80::1%eth0", "2001:db8::1"])
async def test_it_does_not_answer_another_machine(developing: Api, peer: str) -> None:
    """As they can connect with HOST=0.0.0.0; what they say of themselves counts for nothing."""
    claims = {"Host": "localhost", "X-Forwarded-For": "127.0.0.1"}
    with pytest.raises(NotAllowed):
        await show_mailbox(request_of(developing.app, peer, claims))


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
async def test_it_answers_loopback_however_it_is_written(developing: Api, peer: str) -> None:
    answer = await show_mailbox(request_of(developing.app, peer, {"Host": "localhost"}))
    assert answer.status == 200


def request_of(app: web.Application, peer: str, headers: dict[str, str]) -> web.Request:
    """Return a request for the mailbox from a peer that tests cannot be."""
    return make_mocked_request("GET", "/dev/mailbox", headers, app=app).clone(remote=peer)


async def test_scripts_of_other_origins_never_read_it(
    of_developers: Settings, database: asyncpg.Connection, redis: object
) -> None:
    origin = "https://evil.example"
    for allowed in ("*", origin):
        settings = replace(of_developers, cors_origins=frozenset({allowed}))
        async with running(settings) as api:
            for path in (MAILBOX, "//dev/%6dailbox"):
                read = await api.get(path, headers={"Origin": origin, "Host": "localhost"})
                asked = await api.call(
                    "OPTIONS",
                    path,
                    headers={"Origin": origin, "Access-Control-Request-Method": "GET"},
                )
                assert asked.status == 405
                for answer in (read, asked):
                    told = {name for name in answer.headers if name.startswith("Access-Control-")}
                    assert told == set()


async def test_nobody_else_on_the_machine_reads_its_files(
    of_developers: Settings, database: asyncpg.Connection, redis: object, tmp_path: Path
) -> None:
    """Also what a version before this one wrote for all to read."""
    folder = tmp_path / "mailbox"
    folder.mkdir(mode=0o755)
    (folder / "before.eml").write_text("Subject: a token")
    (folder / "before.eml").chmod(0o644)
    async with running(of_developers) as api:
        await registered(api, database, "anna@example.com")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
        assert len(modes) == 2
        assert set(modes.values()) == {0o600}, modes
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
