"""The service behind PgBouncer, which runs each transaction on whichever connection is free."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from redis.asyncio import Redis

from service.settings import read_settings
from tests.e2e.processes import LOOPBACK, free_port, own_database, run
from tests.factories import Api, running
from tests.faults.machines import Machine, Missing
from tests.faults.pgbouncer import pgbouncer
from tests.faults.postgres import folder_for_servers

FEW = 2
"""Connections of PgBouncer to PostgreSQL: so few that every client gets those of others."""


@pytest.fixture
def pooled(environment: Mapping[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a service with a database of its own behind PgBouncer."""
    port = free_port()
    with own_database(environment["DATABASE_URL"]) as url:
        target = conninfo_to_dict(url)
        try:
            folder = folder_for_servers(tmp_path / "servers")
            server = pgbouncer(Machine(LOOPBACK), port, target, folder, pool_size=FEW)
        except Missing as missing:
            pytest.skip(str(missing))
        server.start()
        try:
            yield {
                **environment,
                "DATABASE_URL": f"postgresql://postgres@{LOOPBACK}:{port}/{target['dbname']}",
                "DATABASE_PREPARED_STATEMENTS": "off",
            }
        finally:
            server.kill()


async def tell_the_story(api: Api) -> None:
    anna = await api.new_person()
    for _ in range(5):
        code = await api.new_code(anna)
        assert (await api.get(f"/referral-code/{anna.email}")).json()["code"] == code
        bert = await api.new_person(referral_code=code)
        listed = await api.get("/referrals/me", by=anna)
        assert listed.json()["items"][0]["id"] == bert.user_id
        assert (await api.delete("/referral-code", by=anna)).status == 204


async def test_every_statement_runs_on_connections_that_others_use_too(
    pooled: dict[str, str], redis: Redis
) -> None:
    settings = read_settings(pooled)
    async with running(settings) as api, running(settings) as other:
        await asyncio.gather(*(tell_the_story(each) for each in [api, other] * 4))


async def test_so_do_the_commands(pooled: dict[str, str]) -> None:
    for command in (
        ["clients", "create", "Shop", "--confidential", "--scope", "referrals:read"],
        ["jobs", "list"],
    ):
        done = run(*command, environment=pooled)
        assert done.returncode == 0, done.stderr
