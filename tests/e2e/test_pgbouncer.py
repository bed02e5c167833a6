"""The service behind PgBouncer, which runs each transaction on whichever connection is free."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from redis.asyncio import Redis

from service.settings.settings import read_settings
from tests.e2e.processes import (
    COMMAND,
    LOOPBACK,
    free_port,
    own_database,
    run,
    started,
    status_of,
    wait_for,
)
from tests.engines.machines import Machine, Missing
from tests.engines.pgbouncer import pgbouncer
from tests.engines.standbys import folder_for_servers
from tests.factories import Api, running

FEW = 2
"""Connections of PgBouncer to PostgreSQL: so few that every client gets those of others."""


@contextmanager
def pooler_before(target: Mapping[str, object], folder: Path) -> Iterator[int]:
    """Run PgBouncer before that PostgreSQL; yield its port."""
    port = free_port()
    try:
        place = folder_for_servers(folder)
        server = pgbouncer(Machine(LOOPBACK), port, target, place, pool_size=FEW)
    except Missing as missing:
        pytest.skip(str(missing))
    server.start()
    try:
        yield port
    finally:
        server.kill()


@pytest.fixture
def pooled(environment: Mapping[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a service with a database of its own behind PgBouncer."""
    with own_database(environment["DATABASE_URL"]) as url:
        target = conninfo_to_dict(url)
        with pooler_before(target, tmp_path / "servers") as port:
            yield {
                **environment,
                "DATABASE_URL": f"postgresql://postgres@{LOOPBACK}:{port}/{target['dbname']}",
                "DATABASE_PREPARED_STATEMENTS": "off",
            }


async def tell_the_story(api: Api) -> None:
    anna = await api.new_person()
    for _ in range(5):
        code = await api.new_code(anna)
        assert (await api.get(f"/referral-code/{anna.email}")).json()["code"] == code
        bert = await api.new_person(referral_code=code)
        listed = await api.get("/referrals/me", by=anna)
        assert listed.json()["items"][0]["id"] == bert.user_id
        assert (await api.delete("/referral-code", by=anna)).status == 204


@pytest.mark.parametrize("parameter", ["", "?pgbouncer=true"])
async def test_every_statement_runs_on_connections_that_others_use_too(
    pooled: dict[str, str], redis: Redis, parameter: str
) -> None:
    url, off = pooled["DATABASE_URL"], pooled["DATABASE_PREPARED_STATEMENTS"]
    told = {
        "DATABASE_URL": url + parameter,
        "DATABASE_PREPARED_STATEMENTS": (parameter and "on") or off,
    }
    settings = read_settings({**pooled, **told})
    async with running(settings) as api, running(settings) as other:
        await asyncio.gather(*(tell_the_story(each) for each in [api, other] * 4))


async def test_so_do_the_commands(pooled: dict[str, str]) -> None:
    for command in (
        ["clients", "create", "Shop", "--confidential", "--scope", "referrals:read"],
        ["jobs", "list"],
    ):
        done = run(*command, environment=pooled)
        assert done.returncode == 0, done.stderr


def test_while_postgresql_is_away_behind_it_the_service_starts(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    """PgBouncer says so in the state that it also has for what no waiting mends."""
    nobody = {"host": LOOPBACK, "port": free_port(), "user": "postgres"}
    with pooler_before(nobody, tmp_path / "servers") as pooler:
        port = str(free_port())
        told = {
            **environment,
            "DATABASE_URL": f"postgresql://postgres@{LOOPBACK}:{pooler}/postgres",
            "HOST": LOOPBACK,
            "PORT": port,
            "WORKERS": "1",
        }
        with started([*COMMAND, "serve"], told) as process:
            wait_for(f"http://{LOOPBACK}:{port}/health/live", process)
            assert status_of(f"http://{LOOPBACK}:{port}/health/ready") == 503


def test_what_it_does_not_know_ends_the_start(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    target = conninfo_to_dict(environment["DATABASE_URL"])
    with pooler_before(target, tmp_path / "servers") as pooler:
        url = f"postgresql://postgres@{LOOPBACK}:{pooler}/postgres?options=-cjit%3Doff"
        done = run("jobs", "list", environment={**environment, "DATABASE_URL": url})
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert "options" in line
        assert "DATABASE_URL" in line
