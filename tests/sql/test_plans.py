"""No statement of a request needs to read a whole table, or is planned whenever it is used."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.conftest import Servers
from tests.sql.plans import BESIDE_REQUESTS, arguments_of, explained, plan_of, prepared, statements

HOT_WITH_ARRAYS = [
    ("jobs", "DELETE"),
    ("participants", "EXTERNAL_IDS"),
    ("referral_codes", "FIND_LIVE_BY_EMAILS"),
    ("rewards", "CHANGE"),
    ("rewards", "GIVE"),
    ("rewards", "RELEASE"),
    ("sessions", "EXPIRIES_IF_OPEN"),
    ("users", "FIND_SEVERAL"),
]
"""What many requests ask for, with arrays of any length."""
THOUSAND_USERS = """
    WITH owners AS (
        INSERT INTO users (user_id, email, email_key, role, created_at, password_hash,
                           email_confirmed_at)
        SELECT gen_random_uuid(), n || '@example.com', n || '@example.com', 'user', now(), '',
               now()
          FROM generate_series(1, 1000) AS n
        RETURNING user_id
    ), taking_part AS (
        INSERT INTO participants (participant_id, programme_id, user_id, created_at)
        SELECT user_id, programme_id, user_id, now()
          FROM owners
         CROSS JOIN programmes
    ), signed_in AS (
        INSERT INTO sessions (session_id, user_id, created_at, refreshed_at, expires_at)
        SELECT user_id, user_id, now(), now(), now() + interval '1 day'
          FROM owners
    ), given AS (
        INSERT INTO rewards (reward_id, programme_id, version, rule, participant_id, cause_id, unit,
                             amount, state, available_at, created_at)
        SELECT user_id, programme_id, version, 'friend', user_id, user_id, 'EUR', 1, 'pending',
               now(), now()
          FROM owners
         CROSS JOIN programme_versions
    ), planned AS (
        INSERT INTO jobs (job_id, kind, payload, created_at, due_at)
        SELECT user_id, 'delivery', '{}', now(), now()
          FROM owners
    )
    INSERT INTO referral_codes (referral_code_id, owner_id, code, created_at, expires_at)
    SELECT gen_random_uuid(), user_id, 'CODE-' || row_number() OVER (), now(),
           now() + interval '1 day'
      FROM owners
"""
ARGUMENTS = {
    "uuid": f"'{UUID(int=1)}'",
    "text": "'text'",
    "integer": "1",
    "bigint": "1",
    "boolean": "true",
    "timestamp with time zone": "now()",
}
CUSTOM_PLANS = 5
"""How often PostgreSQL plans a statement for its arguments, before it compares."""


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


@pytest.mark.parametrize("key", HOT_WITH_ARRAYS, ids=".".join)
def test_it_is_planned_only_at_first(key: tuple[str, str], servers: Servers) -> None:
    """Were the number of rows known, a plan for one would look cheaper than one for any."""
    with (
        psycopg.connect(servers.database_url) as connection,
        connection.transaction(force_rollback=True),
    ):
        connection.execute(THOUSAND_USERS)
        connection.execute("ANALYZE")
        with prepared(connection, statements()[key]) as types:
            question = f"EXPLAIN EXECUTE asked{arguments_of(types, ARGUMENTS)}"
            for _ in range(CUSTOM_PLANS + 3):
                explained(connection, question)
            planned = "SELECT custom_plans FROM pg_prepared_statements WHERE name = 'asked'"
            assert connection.execute(planned).fetchone() == (CUSTOM_PLANS,)


def test_a_look_up_begins_with_the_email_addresses(servers: Servers) -> None:
    """Also where there are so few codes that reading all of them looks cheap."""
    look_up = statements()["referral_codes", "FIND_LIVE_BY_EMAILS"]
    with (
        psycopg.connect(servers.database_url) as connection,
        connection.transaction(force_rollback=True),
    ):
        connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        connection.execute(THOUSAND_USERS)
        connection.execute("ANALYZE")
        assert "Index Cond: (email_key = ANY" in plan_of(connection, look_up)
