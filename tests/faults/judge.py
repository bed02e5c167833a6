"""Judges a whole history, by itself and against what PostgreSQL holds in the end."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import asyncpg

from tests.faults.checker import Register
from tests.faults.history import History, Operation

LIVE_CODES = """
    SELECT u.email, c.code, c.max_uses, c.uses
      FROM users u
      LEFT JOIN referral_codes c ON c.owner_id = u.user_id AND c.ended_at IS NULL
     WHERE u.email LIKE 'owner%'
"""

TWO_LIVE_CODES = """
    SELECT owner_id, array_agg(code) AS codes
      FROM referral_codes
     WHERE ended_at IS NULL
     GROUP BY owner_id
    HAVING count(*) > 1
"""

# Of the newest codes, which are the ones that change.
TOO_MANY_USES = """
    SELECT code, uses, max_uses
      FROM (SELECT code, uses, max_uses
              FROM referral_codes
             ORDER BY referral_code_id DESC
             LIMIT 500) AS newest
     WHERE uses > max_uses
"""

TOO_MANY_USES_AT_LAST = "SELECT code, uses, max_uses FROM referral_codes WHERE uses > max_uses"

USES_WITHOUT_REFERRALS = """
    SELECT c.code, c.uses + COALESCE(s.uses, 0) AS uses, COALESCE(r.referrals, 0) AS referrals
      FROM referral_codes c
      LEFT JOIN (SELECT referral_code_id, sum(uses) AS uses
                   FROM referral_code_uses
                  GROUP BY referral_code_id) AS s USING (referral_code_id)
      LEFT JOIN (SELECT code, count(*) AS referrals
                   FROM referrals
                  GROUP BY code) AS r USING (code)
     WHERE c.uses + COALESCE(s.uses, 0) <> COALESCE(r.referrals, 0)
"""

ACCOUNTS = """
    SELECT u.user_id::text, u.email, r.code
      FROM users u
      LEFT JOIN referrals r ON r.user_id = u.user_id
"""


async def judge(history: History, database: asyncpg.Connection) -> list[str]:
    """Return every violation, in words. The service must have ended: nothing may be under way."""
    accounts = await database.fetch(ACCOUNTS)
    codes = {row["code"] for row in await database.fetch("SELECT code FROM referral_codes")}
    operations = [*_resolved(history.operations, {row["email"]: row for row in accounts}, codes)]
    return [
        *history.complaints,
        *_wrong_accounts(operations, accounts),
        *await _wrong_rows(database),
        *_wrong_registers(history, operations, await database.fetch(LIVE_CODES)),
    ]


async def wrong_now(database: asyncpg.Connection) -> list[str]:
    """Return what is true now and never may be."""
    return [
        *(f"two live codes: {dict(row)}" for row in await database.fetch(TWO_LIVE_CODES)),
        *(f"too many uses: {dict(row)}" for row in await database.fetch(TOO_MANY_USES)),
    ]


def _resolved(
    operations: list[Operation], accounts: dict[str, asyncpg.Record], codes: set[str]
) -> Iterator[Operation]:
    """Leave out what did not happen after all: each write is known by what it left."""
    acknowledged = {each.email for each in operations if each.kind == "register" and each.user_id}
    unknown = Counter(
        each.email for each in operations if each.kind == "register" and not each.known
    )
    for each in operations:
        if each.known:
            yield each
        elif each.kind == "delete":
            yield replace(each, certain=False)
        elif each.kind == "register":
            made = accounts.get(str(each.email))
            if made and made["code"] == each.code and each.email not in acknowledged:
                yield replace(each, certain=unknown[each.email] == 1)
        elif each.code in codes:
            yield each


def _wrong_accounts(operations: list[Operation], accounts: list[asyncpg.Record]) -> Iterator[str]:
    """Compare the answers to registrations with the accounts that exist."""
    rows = defaultdict(list)
    for row in accounts:
        rows[row["email"]].append(row)
    tries = defaultdict(list)
    for each in operations:
        if each.kind == "register":
            tries[str(each.email)].append(each)
    for email, found in rows.items():
        if len(found) > 1:
            yield f"{len(found)} accounts have the email address {email}"
    for email, tried in tries.items():
        yield from _wrong_account(tried, {row["user_id"]: row["code"] for row in rows[email]})


def _wrong_account(tried: list[Operation], found: dict[str, str | None]) -> Iterator[str]:
    """Compare the registrations of one email address with its account: id and referral."""
    made = [each for each in tried if each.status == 201]
    if len(made) > 1:
        yield f"registered twice: {_listed(made)}"
    for each in made:
        if each.user_id not in found:
            yield f"an acknowledged account is lost: {each}"
        elif found[each.user_id] != each.code:
            yield f"an account with another referral than was acknowledged: {each}, {found}"
    if not found and any(each.status == 409 for each in tried):
        yield f"refused as taken, though there is no such account: {_listed(tried)}"
    if not {each.code for each in tried}.issuperset(found.values()):
        yield f"an account without its referral: {found}, {_listed(tried)}"


def _listed(operations: list[Operation]) -> str:
    return "; ".join(map(str, operations))


async def _wrong_rows(database: asyncpg.Connection) -> list[str]:
    too_many = await database.fetch(TOO_MANY_USES_AT_LAST)
    not_referrals = await database.fetch(USES_WITHOUT_REFERRALS)
    return [
        *await wrong_now(database),
        *(f"too many uses: {dict(row)}" for row in too_many),
        *(f"uses that are not referrals: {dict(row)}" for row in not_referrals),
    ]


def _wrong_registers(
    history: History, operations: list[Operation], live: list[asyncpg.Record]
) -> Iterator[str]:
    end = max((each.ended for each in operations if each.known), default=0.0)
    for row in live:
        own = [each for each in operations if each.owner == row["email"]]
        last = Operation(
            kind="show",
            owner=row["email"],
            begun=end,
            ended=end + 1,
            status=200 if row["code"] else 404,
            code=row["code"],
            uses=row["uses"] if row["max_uses"] else None,
        )
        register = Register([*filter(_is_of_the_database, own), last])
        if register.impossible is not None:
            yield register.impossible
            continue
        for each in own:
            if each.kind == "look_up" and not register.may_have_given(each, history.windows):
                yield f"a look-up gave what was not live: {each}"


def _is_of_the_database(operation: Operation) -> bool:
    if operation.kind == "register":
        # A 409 says nothing about the code, and without a code nothing was used.
        return operation.code is not None and operation.status != 409
    return operation.kind != "look_up"
