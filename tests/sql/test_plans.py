"""No statement of a request needs to read a whole table."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import Servers
from tests.sql.plans import BESIDE_REQUESTS, plan_of, statements


@pytest.fixture(scope="module")
def planner(servers: Servers) -> Iterator["psycopg.Connection[Any]"]:
    """A connection that reads a whole table only where no index can be used."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.execute("SET enable_seqscan = off")
        yield connection


@pytest.mark.parametrize("key", sorted(set(statements()) - BESIDE_REQUESTS), ids=".".join)
def test_it_can_use_an_index(key: tuple[str, str], planner: "psycopg.Connection[Any]") -> None:
    plan = plan_of(planner, statements()[key])
    assert "Seq Scan" not in plan, plan


@pytest.mark.parametrize("key", sorted(BESIDE_REQUESTS), ids=".".join)
def test_what_may_read_a_whole_table_does(
    key: tuple[str, str], planner: "psycopg.Connection[Any]"
) -> None:
    """Otherwise it need not be excepted, and the other test could not fail."""
    assert "Seq Scan" in plan_of(planner, statements()[key])
