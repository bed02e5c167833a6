"""Erasing and exporting an account forget no table of its data, also none that is added later."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from tests.factories import PASSWORD, Api, Person

# Columns that may say who somebody is, or what they did: by name, or by a foreign key to users.
PERSONAL: Final = """
    SELECT table_name, column_name
      FROM information_schema.columns
     WHERE table_schema = current_schema
       AND table_name NOT LIKE '%yoyo%'
       AND (column_name ~ '(^|_)(user|owner|referrer|client|account)_id$'
            OR column_name ~ 'email|mailbox|subject|address|agent|browser|password|person|payload')
     UNION
    SELECT from_table.relname, attname
      FROM pg_constraint c
      JOIN pg_class from_table ON from_table.oid = c.conrelid
      JOIN pg_attribute ON attrelid = c.conrelid AND attnum = ANY (c.conkey)
     WHERE c.contype = 'f'
       AND c.confrelid = 'users'::regclass
"""
STAYS: Final = {
    ("users", "user_id"): "The row stays without a name: others' referrals point to it.",
    ("referrals", "user_id"): "The referrer's count stays; the id leads to no name.",
    ("referrals", "referrer_id"): "Of the others' accounts: who referred them.",
    ("referrals", "email_hash"): "Keyed. An email address is referred once, ever.",
    ("referrals", "mailbox_hash"): "Keyed. Flags the next referral of the same mailbox.",
    ("referral_codes", "owner_id"): "The codes have ended; their uses are the referrer's count.",
    ("authorization_codes", "user_id"): "Of no use any more, and deleted within a day.",
    ("authorization_codes", "client_id"): "The same row.",
    ("mailboxes", "mailbox_hash"): "Keyed, and deleted a day after the last mail.",
    ("sign_ins", "browser_hash"): "Of no account: deleted within ten minutes.",
    ("oauth_clients", "client_id"): "An application, not a person.",
}

NOT_EXPORTED: Final = {
    "account_changes": "For as long as a change can be undone: what was changed.",
    "claims": "Of addresses that nobody has confirmed: of no account yet.",
    "confirmations": "Hashes of tokens that were used.",
    "idempotency_keys": "Answers that the user has had, kept for a day.",
    "jobs": "What is being done; deleted when it is, or when it has been parked too long.",
    "mailboxes": "Keyed hashes and counts, kept for a day.",
    "oauth_clients": "Applications, not persons.",
    "referral_code_names": "The names of the codes that are shown.",
    "sign_ins": "Of no account, kept for ten minutes.",
}


@contextmanager
def recorded_statements() -> Iterator[list[str]]:
    """Record what all connections are asked."""
    statements: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("execute", "fetch", "fetchrow", "fetchval"):
            method = getattr(asyncpg.Connection, name)

            async def record(
                self: asyncpg.Connection,
                query: str,
                *arguments: Any,
                _method: Any = method,
                **of: Any,
            ) -> Any:
                statements.append(query)
                return await _method(self, query, *arguments, **of)

            patch.setattr(asyncpg.Connection, name, record)
        yield statements


async def test_every_table_about_a_user_is_exported_or_excused(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    with recorded_statements() as statements:
        await api.app[SERVICES].personal_data.export(UUID(anna.user_id))
    read = {table for text in statements for table in re.findall(r"(?:FROM|JOIN) (\w+)", text)}
    personal = {table for table, _ in await database.fetch(PERSONAL)}
    assert personal - read == set(NOT_EXPORTED)


async def test_every_column_about_a_user_is_erased_or_excused(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """Without one of the deletions in remove_account its table is left over here."""
    with recorded_statements() as statements:
        erased = await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    assert erased.status == 204

    deleted = {table for text in statements for table in re.findall(r"DELETE FROM (\w+)", text)}
    emptied = {
        (table, column)
        for text in statements
        for table, changes in re.findall(r"UPDATE (\w+)\s+SET (.*?)\s+WHERE", text, re.DOTALL)
        for column in re.findall(r"(\w+) = NULL", changes)
    }
    personal = {tuple(row) for row in await database.fetch(PERSONAL)}
    left = {(table, column) for table, column in personal - emptied if table not in deleted}
    assert left == set(STAYS)
