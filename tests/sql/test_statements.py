"""PostgreSQL understands every statement, on the schema as the migrations leave it."""

import re

import asyncpg
import pytest

from service.postgresql.hosts import PREPARED_STATEMENTS
from tests.sql.plans import statements

STATEMENTS = [
    pytest.param(text, id=f"{module}.{name}") for (module, name), text in statements().items()
]


def test_every_table_has_its_statements() -> None:
    """Otherwise a module that is not found would pass without a word."""
    tested = {str(param.id).partition(".")[0] for param in STATEMENTS}
    named = {
        "account_changes",
        "authorization_codes",
        "balances",
        "claims",
        "confirmations",
        "decisions",
        "differences",
        "enrichments",
        "events",
        "exports",
        "idempotency_keys",
        "identities",
        "jobs",
        "mail_tokens",
        "mailboxes",
        "migrations",
        "oauth_clients",
        "participants",
        "outdated",
        "personal_data",
        "programmes",
        "participant_codes",
        "referral_code_uses",
        "referral_codes",
        "referrals",
        "reward_counts",
        "rewards",
        "security_events",
        "sessions",
        "sign_ins",
        "signals",
        "standings",
        "transfers",
        "users",
        "webhook_attempts",
        "webhook_deliveries",
        "webhook_endpoints",
        "webhook_messages",
    }
    assert tested - named == set(), "New modules: name them here."
    assert named - tested == set(), "No statements are found in these: remove or rename them here."


def test_a_connection_keeps_all_of_them_prepared() -> None:
    """Otherwise the least used is parsed and planned anew each time."""
    assert len(STATEMENTS) < PREPARED_STATEMENTS


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_it_prepares(statement: str, database: asyncpg.Connection) -> None:
    await database.prepare(statement)


async def test_each_names_the_columns_it_wants(database: asyncpg.Connection) -> None:
    """A column that is added later must not turn up where nobody expects it."""
    tables = await database.fetch(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema"
    )
    all_columns = re.compile(rf"\*\s+FROM\s+({'|'.join(name for (name,) in tables)})\b")
    assert all_columns.search("SELECT * FROM users WHERE user_id = $1")
    assert [param.id for param in STATEMENTS if all_columns.search(str(param.values[0]))] == []


@pytest.mark.parametrize("statement", STATEMENTS)
def test_it_leaves_nothing_behind_in_its_connection(statement: str) -> None:
    """Connections are not reset between requests."""
    lasting = r"\b(SET\s+(?!LOCAL)\w+\s+TO|LISTEN|DECLARE|PREPARE|TEMP|TEMPORARY)\b"
    assert not re.search(
        rf"^\s*SET\b|{lasting}|set_config|pg_(try_)?advisory_lock", statement, re.IGNORECASE
    )
