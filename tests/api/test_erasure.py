"""Erasing and exporting an account forget no table of its data, also none that is added later."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain.clock import utc_now
from service.domain.errors import ParticipantNotFound
from service.domain.events import Outcome
from service.domain.referrals import SYSTEM
from service.use_cases.erasure import reclaim
from service.use_cases.events import EventReport
from service.use_cases.participants import ParticipantChange, Who
from tests.company import new_company
from tests.factories import PASSWORD, WITHOUT_KEY, Api, Person
from tests.recorded import recorded_statements

# Tables that lead to a user: `users`, those with a column named so, and those with a foreign key to
# one of them; then all columns of theirs that may say anything, which numbers, times, ids and words
# of a list in a constraint do not.
FREE: Final = """
    WITH RECURSIVE reaching AS (
        SELECT attrelid AS its_table
          FROM pg_attribute
          JOIN pg_class ON pg_class.oid = attrelid
         WHERE relnamespace = current_schema::regnamespace
           AND relkind = 'r'
           AND attnum > 0
           AND attname ~ '(^|_)(user|owner|referrer|participant|referral|referral_code)_id$'
         UNION
        SELECT conrelid
          FROM reaching
          JOIN pg_constraint ON confrelid = its_table
    )
    SELECT its_table::regclass::text AS table_name, attname AS column_name
      FROM reaching
      JOIN pg_attribute a ON attrelid = its_table
     WHERE attnum > 0
       AND NOT attisdropped
       AND atttypid::regtype::text NOT IN
           ('uuid', 'bigint', 'integer', 'smallint', 'boolean', 'timestamp with time zone')
       AND NOT EXISTS (
            SELECT FROM pg_constraint
             WHERE conrelid = its_table
               AND conkey = ARRAY[attnum]
               AND pg_get_constraintdef(oid) ~ '^CHECK \\(\\(\\w+ (= ANY|<@) \\(?ARRAY\\['
           )
"""
# And columns that may say who somebody is, or what they did, by name or by a foreign key.
PERSONAL: Final = f"""
    {FREE}
     UNION
    SELECT table_name, column_name
      FROM information_schema.columns
     WHERE table_schema = current_schema
       AND table_name NOT LIKE '%yoyo%'
       AND (column_name ~ '(^|_)(user|owner|referrer|client|account|participant|referral)_id$'
            OR column_name ~ 'referral_code_id$'
            OR column_name ~ 'email|mailbox|subject|address|agent|browser|password|person|payload'
            OR column_name ~ 'external|public|made_by|detail')
     UNION
    SELECT conrelid::regclass::text, attname
      FROM reaching
      JOIN pg_constraint ON confrelid = its_table
      JOIN pg_attribute ON attrelid = conrelid AND attnum = ANY (conkey)
"""


def of(table: str, columns: str, why: str) -> dict[tuple[str, str], str]:
    """Excuse several columns of a table."""
    return {(table, column): why for column in columns.split()}


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
    ("participants", "participant_id"): "The row stays without a name: others' rows point to it.",
    ("participants", "user_id"): "The same id.",
    ("participants", "external_hash"): "Keyed. An erased id that comes back is nobody new.",
    ("standings", "participant_id"): "The count stays, without a name.",
    ("decisions", "referral_id"): "What was decided about a referral, without a person.",
    ("decisions", "made_by"): "The id of an admin or a client.",
    ("decisions", "detail"): "The words of a reviewer, who is not to name anyone.",
    ("events", "participant_id"): "What a referral qualified by; the id leads to no name.",
    ("events", "external_id"): "The company's id of an event, not of a person.",
    ("rewards", "participant_id"): "What is owed stays owed; the id leads to no name.",
    ("rewards", "referral_id"): "The same.",
    ("reward_counts", "subject_id"): "A count, without a name.",
    ("transfers", "participant_id"): "The books stay, without a person.",
    ("transfers", "external_id"): "The company's id of a payout, not of a person.",
    ("transfers", "made_by"): "The id of an admin or a client.",
    ("balances", "participant_id"): "The sum of the transfers.",
    ("programme_versions", "made_by"): "The id of an admin or a client.",
    ("referrals", "code"): "A code, whose name belongs to its owner.",
    **of("referrals", "reason flags", "Words of the service, which say nothing of a person."),
    **of("referral_codes", "referral_code_id code", "The row stays, as its name does."),
    ("referral_code_uses", "referral_code_id"): "Counts of a code that stays.",
    ("referral_code_names", "name"): "Never given out again; whose it was is forgotten.",
    **of("authorization_codes", "code_hash redirect_uri scopes", "Of the row deleted in a day."),
    **of("authorization_codes", "code_challenge session_id", "The same."),
    **of("decisions", "state review reason", "Words of the service."),
    **of("events", "type unit", "What happened, in the company's words for any person."),
    ("events", "refunds"): "The company's id of an event, not of a person.",
    ("events", "fingerprint"): "A hash of the event, to know a repetition.",
    **of("rewards", "rule unit", "Of the programme's rules."),
    ("balances", "unit"): "Of the programme's rules.",
    **of("transfers", "unit kind from_account to_account", "The books stay."),
    **of("transfers", "reward_id cancels", "The ids of rows that stay."),
    ("transfers", "fingerprint"): "A hash of the request, to know a repetition.",
    ("transfers", "note"): "The words of a company about its books, not to name anyone.",
}

OF_ACCOUNTS_ONLY: Final = {
    *("account_changes", "claims", "confirmations", "enrichments", "identities", "jobs"),
    *("mail_tokens", "security_events", "sessions", "users"),
}
"""Tables that have no rows of participants whom only a company knows."""

NOT_EXPORTED: Final = {
    "confirmations": "Hashes of tokens that were used.",
    "idempotency_keys": "Answers that the user has had, kept for a day.",
    "jobs": "What is being done; deleted when it is, or when it has been parked too long.",
    "mailboxes": "Keyed hashes and counts, kept for a day.",
    "oauth_clients": "Applications, not persons.",
    "programme_versions": "Of programmes: the admin who made them is named by an id.",
    "reward_counts": "How many rewards of a rule there are: they are shown themselves.",
    "referral_code_names": "The names of the codes that are shown.",
    "sign_ins": "Of no account, kept for ten minutes.",
}

COLUMNS_NOT_EXPORTED: Final = {
    **of("account_changes", "email_key", "Made of the address, which is exported."),
    **of(
        "account_changes", "subject token_hash", "Who refuses an identity may not be whose it is."
    ),
    **of("authorization_codes", "code_hash code_challenge", "Secrets of an application."),
    **of("claims", "password_hash subject", "Of a stranger, perhaps."),
    **of("claims", "email_key", "Made of the address, which is exported."),
    **of("decisions", "made_by", "The id of another."),
    **of("decisions", "review", "The reason says it."),
    **of("events", "fingerprint", "A hash of what is exported."),
    **of("identities", "email_key", "Made of the address, which is exported."),
    **of("mail_tokens", "token_hash email_key", "A secret; made of the address."),
    **of("participants", "external_id external_hash", "Accounts have none."),
    **of("referrals", "email_hash mailbox_hash", "Keyed hashes of the address."),
    **of("referrals", "flags", "They would show how to avoid the rules against fraud."),
    **of("signals", "hash", "A keyed hash; that there is one is exported."),
    **of("transfers", "fingerprint", "A hash of what is exported."),
    **of("transfers", "made_by", "The id of another."),
    **of("users", "email_key", "Made of the address, which is exported."),
}

LEFT_TO_THE_OWNER: Final = {
    "account_changes": "An identity that was refused is not to be linked again.",
    "balances": "The books stay, whoever has the account.",
    "claims": "Deleted by the confirmation of one of them.",
    "confirmations": "Of none: the address was never confirmed.",
    "enrichments": "Of the address, which is the owner's.",
    "events": "What a company has reported of the account.",
    "idempotency_keys": "Answers, which only their keys lead to, kept for a day.",
    "jobs": "What is being done; mailed tokens are no good any more.",
    "mailboxes": "Of the address; keyed hashes and counts, kept for a day.",
    "oauth_clients": "Applications, not persons.",
    "participants": "The row is the account's; a company decides whether it is trusted.",
    "programme_versions": "Of programmes: the admin who made them is named by an id.",
    "referral_code_names": "The names stay the account's for ever.",
    "reward_counts": "Counts, without a name.",
    "security_events": "The owner is to see what was done before.",
    "sign_ins": "Of no account, kept for ten minutes.",
    "referral_code_uses": "Counts, without a name.",
    "transfers": "The books stay.",
}

COLUMNS_LEFT_TO_THE_OWNER: Final = {
    **of("referral_codes", "code", "It has ended; its name stays the account's for ever."),
    **of("rewards", "rule unit", "Of the programme's rules."),
    **of("sessions", "client_id origin scopes user_agent", "Ended. The owner is to see them."),
    **of("users", "email email_key email_verdict_source", "Of the address, the owner's."),
}


async def test_every_table_about_a_user_is_exported_or_excused(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    with recorded_statements() as statements:
        await api.app[SERVICES].personal_data.export(UUID(anna.user_id))
    read = {table for text, _ in statements for table in tables_read_by(text)}
    personal = {table for table, _ in await database.fetch(PERSONAL)}
    assert_excused(
        personal - read,
        NOT_EXPORTED,
        "Not exported: add them to repositories/personal_data.py, or to NOT_EXPORTED.",
    )
    chosen = {
        (table, column)
        for text, _ in statements
        for table in tables_read_by(text)
        for column in re.findall(r"\w+", re.split(r"\n +FROM ", text)[0])
    }
    free = {tuple(row) for row in await database.fetch(FREE)}
    assert_excused(
        {(table, column) for table, column in free - chosen if table in read},
        COLUMNS_NOT_EXPORTED,
        "Not exported: add them to repositories/personal_data.py, or to COLUMNS_NOT_EXPORTED.",
    )


async def test_every_column_about_a_user_is_erased_or_excused(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """Without one of the deletions in remove_account its table is left over here."""
    with recorded_statements() as statements:
        erased = await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    assert erased.status == 204

    deleted = tables_deleted_by(statements)
    emptied = columns_set_by(statements, to="NULL")
    personal = {tuple(row) for row in await database.fetch(PERSONAL)}
    left = {(table, column) for table, column in personal - emptied if table not in deleted}
    assert_excused(
        left,
        STAYS,
        "Not erased: do it in `remove_account` (use_cases/erasure.py), or add them to STAYS.",
    )


async def test_every_column_about_a_participant_of_a_company_is_erased_or_excused(
    api: Api, database: asyncpg.Connection
) -> None:
    company = await new_company(api)
    referrer = await company.new_referrer()
    with recorded_statements() as statements:
        erased = await company.delete(f"/participants/{referrer['participant_id']}")
    assert erased.status == 204

    deleted = tables_deleted_by(statements) | OF_ACCOUNTS_ONLY
    emptied = columns_set_by(statements, to="NULL")
    personal = {tuple(row) for row in await database.fetch(PERSONAL)}
    left = {(table, column) for table, column in personal - emptied if table not in deleted}
    new = left - set(STAYS)
    assert new == set(), (
        "Not erased: do it in `Participants.erase` (use_cases/participants.py) too, or add the "
        "table to OF_ACCOUNTS_ONLY."
    )


async def test_every_table_about_a_user_is_stripped_of_a_stranger_or_excused(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """Without one of the deletions in `strip` its table is left over here."""
    bert = await api.new_person(referral_code=await api.new_code(anna))
    services = api.app[SERVICES]
    with recorded_statements() as statements:
        async with services.database.transaction() as repositories:
            await reclaim(services.users._shared, repositories, UUID(bert.user_id), utc_now())
    deleted = tables_deleted_by(statements)
    emptied = {table for text, _ in statements for table in re.findall(r"UPDATE (\w+)", text)}
    personal = {table for table, _ in await database.fetch(PERSONAL)}
    assert_excused(
        personal - emptied - deleted,
        LEFT_TO_THE_OWNER,
        "A stranger may have put this there before the owner confirmed the address: remove it in "
        "`strip` (use_cases/erasure.py), or add the table to LEFT_TO_THE_OWNER.",
    )
    free = {tuple(row) for row in await database.fetch(FREE)}
    left = free - columns_set_by(statements)
    assert_excused(
        {(table, column) for table, column in left if table in emptied - deleted},
        COLUMNS_LEFT_TO_THE_OWNER,
        "A stranger may have put this there before the owner confirmed the address: remove it in "
        "`strip` (use_cases/erasure.py), or add the column to COLUMNS_LEFT_TO_THE_OWNER.",
    )


def tables_read_by(statement: str) -> list[str]:
    return re.findall(r"(?:FROM|JOIN) (\w+)", statement)


def tables_deleted_by(statements: list[tuple[str, Any]]) -> set[str]:
    return {table for text, _ in statements for table in re.findall(r"DELETE FROM (\w+)", text)}


def columns_set_by(statements: list[tuple[str, Any]], to: str = "") -> set[tuple[str, str]]:
    return {
        (table, column)
        for text, _ in statements
        for table, changes in re.findall(r"UPDATE (\w+)\s+SET (.*?)\s+WHERE", text, re.DOTALL)
        for column in re.findall(rf"(\w+) = {to}", changes)
    }


def assert_excused(left: set[Any], excuses: Mapping[Any, str], otherwise: str) -> None:
    """What is left is what is excused, no more and no less."""
    assert left - set(excuses) == set(), otherwise
    assert set(excuses) - left == set(), "These need no excuse any more."


async def test_who_takes_over_an_unconfirmed_account_is_not_taken_for_the_stranger(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    services, anna_id = api.app[SERVICES], UUID(anna.user_id)
    await services.participants.change(anna_id, ParticipantChange(public_name="The stranger"))
    async with services.database.transaction() as repositories:
        await repositories.signals.note(anna_id, {"device": b"a hash"}, utc_now())
        await reclaim(services.users._shared, repositories, anna_id, utc_now())
    assert (await services.participants.find(anna_id)).participant.public_name is None
    assert await database.fetchval("SELECT count(*) FROM signals") == 0


async def test_an_erased_account_takes_part_no_more(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """Its name and what it could be recognised by go; what was decided and earned stays."""
    services = api.app[SERVICES]
    bert = await api.new_person(referral_code=await api.new_code(anna))
    bert_id = UUID(bert.user_id)
    who = Who(participant_id=bert_id)
    change = ParticipantChange(public_name="Bert of the hills")
    await services.participants.change(bert_id, change)
    async with services.database.autocommit() as repositories:
        await repositories.signals.note(bert_id, {"device": b"a hash"}, utc_now())
    report = EventReport(external_id="order-1", type="purchase", who=who, fingerprint=b"a body")
    await services.events.report(report, SYSTEM, WITHOUT_KEY)
    told = await services.personal_data.export(bert_id)
    assert told["participant"]["public_name"] == "Bert of the hills"
    assert told["referral"]["state"] == "qualified"
    assert [one["reason"] for one in told["decisions"]] == ["signed-up", "qualified"]
    assert [one["id"] for one in told["events"]] == ["order-1"]
    assert [one["kind"] for one in told["signals"]] == ["device"]

    assert (await api.delete("/users/me", {"password": PASSWORD}, by=bert)).status == 204
    row = await database.fetchrow(
        """
        SELECT p.erased_at IS NOT NULL AS erased, s.public_name, r.state,
               (SELECT count(*) FROM signals) AS signals,
               (SELECT count(*) FROM events) AS events,
               (SELECT count(*) FROM decisions) AS decisions
          FROM participants p
          JOIN standings s USING (participant_id)
          JOIN referrals r ON r.user_id = p.participant_id
         WHERE p.user_id = $1
        """,
        bert_id,
    )
    assert row is not None
    assert tuple(row) == (True, None, "qualified", 0, 1, 2)
    with pytest.raises(ParticipantNotFound):
        await services.participants.find(bert_id)
    after = replace(report, external_id="order-2")
    reported = await services.events.report(after, SYSTEM, WITHOUT_KEY)
    assert reported.outcome is Outcome.ERASED


async def test_who_becomes_a_participant_after_the_erasure_is_an_erased_one(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """By a referral of before there were participants, which qualifies or is refunded later."""
    bert = await api.new_person(referral_code=await api.new_code(anna))
    await database.execute("DELETE FROM standings; DELETE FROM participants")
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=anna)).status == 204
    async with api.app[SERVICES].database.transaction() as repositories:
        referrals = api.app[SERVICES].referrals
        await referrals.remove(repositories, UUID(bert.user_id), utc_now())
    erased = await database.fetch("SELECT user_id FROM participants WHERE erased_at IS NOT NULL")
    assert [str(user_id) for (user_id,) in erased] == [anna.user_id]
