"""Reading changes nothing."""

import asyncpg

from tests.api.conftest import no_jobs
from tests.factories import Api, Person

STATEFUL = ("/start", "/callback")
"""Signing in with another issuer is done by GET because browsers are sent there, and has its own
protection; see identity_providers/test_signing_in.py."""


async def contents(database: asyncpg.Connection) -> dict[str, str]:
    """Return a fingerprint of each table."""
    tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    statement = "SELECT md5(string_agg(t::text, ' ' ORDER BY t::text)) FROM {} t"
    return {table: await database.fetchval(statement.format(table)) for (table,) in tables}


async def test_no_get_changes_anything(
    api: Api, anna: Person, admin: Person, database: asyncpg.Connection
) -> None:
    await api.new_code(anna)
    await no_jobs(database)
    before = await contents(database)
    document = (await api.get("//openapi.json")).json()
    values = {
        "email": anna.email,
        "referrer_id": "me",
        "user_id": anna.user_id,
        "provider": "google",
        "code": "email-taken",
        "participant_id": anna.user_id,
        "referral_id": anna.user_id,
        "key": "default",
        "version": 1,
        "table": "referrals",
        "endpoint_id": anna.user_id,
    }
    asked = 0
    for path, operations in document["paths"].items():
        if "get" in operations and not path.endswith(STATEFUL):
            for by in (anna, admin, None):
                answer = await api.get(f"/{path.format(**values)}", by=by)
                assert answer.status < 500
                asked += 1
    assert asked > 30
    assert await contents(database) == before
