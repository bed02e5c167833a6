"""Everything that `make sabotage` breaks exists: otherwise it would break nothing."""

import psycopg
import pytest

from service.redis import cache
from service.repositories import referral_code_uses
from tests.conftest import Servers
from tests.faults.sabotage import SABOTAGES, Sabotage, reworded

EACH = pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.name)


@EACH
def test_what_it_replaces_exists(sabotage: Sabotage) -> None:
    sabotage.replacements()


@EACH
def test_it_breaks_something(sabotage: Sabotage) -> None:
    of_servers = not sabotage.scenario.durable or sabotage.scenario.run_id is not None
    assert sabotage.replacements() or sabotage.sql or of_servers


def test_a_name_or_a_word_that_is_gone_is_an_error() -> None:
    with pytest.raises(AttributeError, match="GONE"):
        reworded(cache, "GONE", "", "")
    with pytest.raises(AssertionError, match="no 'gone'"):
        reworded(referral_code_uses, "TAKE", "gone", "")


@pytest.mark.parametrize(
    "sabotage", [each for each in SABOTAGES if each.sql], ids=lambda sabotage: sabotage.name
)
def test_its_sql_runs_on_the_schema(sabotage: Sabotage, servers: Servers) -> None:
    with psycopg.connect(servers.database_url) as connection:
        connection.execute(sabotage.sql.encode())
        connection.rollback()
