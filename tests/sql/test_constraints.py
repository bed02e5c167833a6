"""What must never be in the database, whoever writes to it: each rule shown by breaking it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
LATER = NOW + timedelta(days=7)
ANNA, BERT, CARL, DORA = UUID(int=1), UUID(int=2), UUID(int=3), UUID(int=4)
HOOK, MESSAGE = UUID(int=7), UUID(int=8)

NEW_USER = """
    INSERT INTO users (user_id, email, email_key, password_hash, role, created_at)
    VALUES ($1, $2, $2, $3, 'user', $4)
"""
NEW_SESSION = """
    INSERT INTO sessions (session_id, user_id, created_at, refreshed_at, expires_at)
    VALUES ($1, $2, $3, $3, $4)
"""
NEW_CODE = """
    INSERT INTO referral_codes
           (referral_code_id, owner_id, code, created_at, expires_at, max_uses)
    VALUES ($1, $2, $3, $4, $5, $6)
"""
NEW_REFERRAL = """
    INSERT INTO referrals (user_id, referrer_id, code, registered_at, email_hash, mailbox_hash)
    VALUES ($1, $2, 'ANNAS', $3, $4, 'a mailbox')
"""
NEW_IDENTITY = """
    INSERT INTO identities (issuer, subject, user_id, created_at)
    VALUES ('https://issuer.example', $1, $2, $3)
"""
COPY_IDENTITY = """
    INSERT INTO identities (identity_id, issuer, subject, user_id, created_at)
    SELECT identity_id, issuer, 'carl', $1, created_at FROM identities
"""
NEW_MAIL_TOKEN = """
    INSERT INTO mail_tokens
           (token_hash, purpose, user_id, email, email_key, created_at, expires_at)
    VALUES ($1, 'sign_in', $2, 'anna@x', 'anna@x', $3, $4)
"""
NEW_TOKEN_OF_NOBODY = """
    INSERT INTO mail_tokens (token_hash, purpose, email, email_key, created_at, expires_at)
    VALUES ('hash', 'confirm_email', 'anna@x', 'anna@x', $1, $2)
"""
NEW_CLAIM = """
    INSERT INTO claims (claim_id, email, email_key, password_hash, issuer, subject,
                        referral_code_id, created_at, expires_at)
    VALUES ($1, 'dora@x', 'dora@x', $2, $3, $4, $5, $6, $7)
"""
NEW_CHANGE = """
    INSERT INTO account_changes
           (account_change_id, user_id, number, kind, email, email_key, email_confirmed,
            issuer, token_hash, expires_at)
    VALUES ($1, $2, $3, $4, 'anna@x', 'anna@x', true, $5, $6, $7)
"""
NEW_CLIENT = """
    INSERT INTO oauth_clients (client_id, name, secret_hash, redirect_uris, scopes, created_at,
                               grants, own_scopes, resource_server)
    VALUES ('shop', 'Shop', $1, '{}', '{}', $2, $3, $4, $5)
"""
REPLACED_SECRET = """
    INSERT INTO oauth_clients (client_id, name, redirect_uris, scopes, created_at,
                               previous_secret_hash, previous_secret_expires_at)
    VALUES ('shop', 'Shop', '{}', '{}', $1, $2, $3)
"""
DEFAULT = UUID("00000000-0000-7000-8000-000000000001")
REWARD, REDEMPTION = UUID(int=11), UUID(int=12)
NEW_RECIPIENT = """
    INSERT INTO participants (participant_id, programme_id, user_id, created_at)
    VALUES ($1, $2, $1, $3)
"""
NEW_REWARD = """
    INSERT INTO rewards
           (reward_id, programme_id, version, rule, participant_id, cause_id, unit, amount, state,
            available_at, created_at)
    VALUES ($1, $2, 1, 'friend', $3, $4, 'EUR', 500, 'pending', $5, $5)
"""
CHANGE_REWARD = "UPDATE rewards SET {} WHERE reward_id = $1"
NEW_TRANSFER = """
    INSERT INTO transfers
           (transfer_id, programme_id, participant_id, unit, kind, from_account, to_account, amount,
            reward_id, external_id, cancels, fingerprint, made_by, created_at)
    VALUES ($1, $2, $3, 'EUR', $4, $5, $6, $7, $8, $9, $10, $11, 'system', $12)
"""
NEW_BALANCE = """
    INSERT INTO balances (participant_id, unit, programme_id, pending, available, redeemed)
    VALUES ($1, 'EUR', $2, $3, $4, $5)
"""


def transfer(
    kind: str,
    accounts: str,
    amount: int = 500,
    reward_id: UUID | None = None,
    external_id: str | None = None,
    cancels: UUID | None = None,
    fingerprint: bytes | None = None,
) -> list[Any]:
    """Return the arguments of NEW_TRANSFER."""
    source, _, target = accounts.partition(" ")
    of_kind = [kind, source, target, amount, reward_id, external_id, cancels, fingerprint]
    return [uuid4(), DEFAULT, ANNA, *of_kind, NOW]


RIGHTS_OF_ITS_OWN: list[tuple[list[str], list[str], bool]] = [
    (["client_credentials"], [], False),
    ([], ["referrals:read"], False),
    ([], [], True),
]
NEW_PROGRAMME = """
    INSERT INTO programmes (programme_id, key, name, version, created_at)
    VALUES ($1, 'default', 'Another', 1, $2)
"""
NEW_VERSION = """
    INSERT INTO programme_versions (programme_id, version, rules, made_by, created_at)
    SELECT programme_id, 1, '{}', 'system', $1 FROM programmes
"""
NEW_PARTICIPANT = """
    INSERT INTO participants
           (participant_id, programme_id, user_id, external_id, external_hash, erased_at,
            created_at)
    SELECT $1, programme_id, $2, $3, $4, $5, $6 FROM programmes
"""
NEW_STANDING = """
    INSERT INTO standings (participant_id, programme_id, qualified)
    SELECT $1, programme_id, $2 FROM programmes
"""
NEW_EVENT = """
    INSERT INTO events
           (event_id, programme_id, external_id, participant_id, type, amount, unit, refunds,
            occurred_at, received_at, fingerprint)
    SELECT $1, programme_id, $2, $3, $4, $5, $6, $7, $8, $8, 'of a body' FROM programmes
"""
NEW_SIGNAL = """
    INSERT INTO signals (participant_id, kind, hash, seen_at) VALUES ($1, $2, 'hash', $3)
"""
NEW_DECISION = """
    INSERT INTO decisions
           (referral_id, sequence, state, review, reason, made_by, decided_at)
    VALUES ($1, 1, 'pending', 'none', 'signed-up', 'system', $2)
"""
NEW_ENDPOINT = """
    INSERT INTO webhook_endpoints
           (endpoint_id, slot, url, failing_since, resume_at, disabled_at, disabled_reason,
            deleted_at, created_at)
    VALUES ($1, $2, 'https://hooks.example.com', $3, $4, $5, $6, $7, $8)
"""
NEW_DELIVERY = """
    WITH message AS (
        INSERT INTO webhook_messages (message_id, type, body, created_at)
        VALUES ($1, 'webhook.test', '{}', $5)
    )
    INSERT INTO webhook_deliveries (message_id, endpoint_id, state, reason, created_at)
    VALUES ($1, $2, $3, $4, $5)
"""
NEW_ATTEMPT = """
    INSERT INTO webhook_attempts
           (message_id, endpoint_id, attempt, status, error, milliseconds, attempted_at)
    VALUES ($1, $2, 2, $3, $4, 20, $5)
"""
CHANGE_REFERRAL = "UPDATE referrals SET {} WHERE user_id = $1"
CHANGE_USER = "UPDATE users SET {} WHERE user_id = $1"
CHANGE_CODE = "UPDATE referral_codes SET {} WHERE owner_id = $1"
ERASE = "erased_at = now(), email = NULL, email_key = NULL"

# Statements that break the constraint of this name.
BROKEN = [
    ("users_email_unique", NEW_USER, [uuid4(), "anna@x", None, NOW]),
    ("users_role_known", CHANGE_USER.format("role = 'root'"), [ANNA]),
    *(
        ("users_have_an_email_until_erased", CHANGE_USER.format(change), [CARL])
        for change in (
            "email = NULL",
            "email_key = NULL",
            "erased_at = now()",
            "erased_at = now(), email = NULL",
            "erased_at = now(), email_key = NULL",
        )
    ),
    ("users_erased_keep_no_password", CHANGE_USER.format(ERASE), [ANNA]),
    ("users_email_verdict_known", CHANGE_USER.format("email_verdict = 'good'"), [ANNA]),
    ("mail_tokens_purpose_known", NEW_MAIL_TOKEN, [b"hash", ANNA, NOW, LATER]),
    ("mail_tokens_of_a_user_or_a_claim", NEW_TOKEN_OF_NOBODY, [NOW, LATER]),
    *(
        ("claims_have_one_way_in", NEW_CLAIM, [uuid4(), *ways, None, NOW, LATER])
        for ways in (
            (None, None, None),
            ("a hash", "https://issuer.example", "dora"),
            (None, "https://issuer.example", None),
            ("a hash", None, "dora"),
        )
    ),
    (
        "claims_referral_code_exists",
        NEW_CLAIM,
        [uuid4(), "a hash", None, None, uuid4(), NOW, LATER],
    ),
    ("sessions_expire_later", NEW_SESSION, [uuid4(), ANNA, NOW, NOW]),
    ("referral_codes_expire_later", CHANGE_CODE.format("expires_at = created_at"), [ANNA]),
    *(
        ("referral_codes_are_normalised", CHANGE_CODE.format("code = $2"), [ANNA, code])
        for code in ("abcd", "ABC", "A" * 33, "AB CD", "ABCD\n", "AB_CD", "\u00c4BCD", "")
    ),
    ("referral_codes_used_at_most_max_uses", CHANGE_CODE.format("uses = uses + 3"), [ANNA]),
    ("referral_codes_used_at_most_max_uses", CHANGE_CODE.format("max_uses = 0, uses = 1"), [ANNA]),
    (
        "referral_codes_end_reason_known",
        CHANGE_CODE.format("ended_at = now(), end_reason = 'used_up'"),
        [ANNA],
    ),
    ("referral_codes_one_live_per_owner", NEW_CODE, [uuid4(), ANNA, "OTHER", NOW, LATER, None]),
    ("referral_codes_live_code_unique", NEW_CODE, [uuid4(), BERT, "ANNAS", NOW, LATER, None]),
    ("identities_of_one_user", NEW_IDENTITY, ["bert", CARL, NOW]),
    ("identities_id_unique", COPY_IDENTITY, [CARL]),
    ("account_changes_numbered", NEW_CHANGE, [uuid4(), ANNA, 1, "email", None, b"2", LATER]),
    ("account_changes_token_unique", NEW_CHANGE, [uuid4(), ANNA, 2, "email", None, b"1", LATER]),
    *(
        ("account_changes_kind_known", NEW_CHANGE, [uuid4(), ANNA, 2, kind, issuer, b"2", LATER])
        for kind, issuer in (("role", None), ("email", "https://x"), ("identity", None))
    ),
    ("oauth_clients_grants_known", NEW_CLIENT, [b"x", NOW, ["password"], [], False]),
    ("oauth_clients_own_scopes_known", NEW_CLIENT, [b"x", NOW, [], ["profile"], False]),
    *(
        ("oauth_clients_without_a_secret_speak_for_users", NEW_CLIENT, [None, NOW, *rights])
        for rights in RIGHTS_OF_ITS_OWN
    ),
    ("oauth_clients_previous_secret_expires", REPLACED_SECRET, [NOW, b"x", None]),
    ("oauth_clients_previous_secret_expires", REPLACED_SECRET, [NOW, None, LATER]),
    ("referrals_email_referred_once", NEW_REFERRAL, [CARL, ANNA, NOW, b"hash of bert"]),
    ("referrals_pkey", NEW_REFERRAL, [BERT, CARL, NOW, b"another hash"]),
    ("referrals_one_unflagged_of_a_mailbox", NEW_REFERRAL, [CARL, ANNA, NOW, b"hash of carl"]),
    ("referrals_of_another_user", NEW_REFERRAL, [ANNA, ANNA, NOW, b"hash of anna"]),
    ("rewards_given_once", NEW_REWARD, [uuid4(), DEFAULT, ANNA, BERT, NOW]),
    ("rewards_state_known", CHANGE_REWARD.format("state = 'paid'"), [REWARD]),
    ("rewards_amount_in_range", CHANGE_REWARD.format("amount = 0"), [REWARD]),
    *(
        ("rewards_reversed_at_most_whole", CHANGE_REWARD.format(f"reversed = {back}"), [REWARD])
        for back in (-1, 501)
    ),
    ("rewards_reversed_is_a_state", CHANGE_REWARD.format("reversed = 500"), [REWARD]),
    ("rewards_reversed_is_a_state", CHANGE_REWARD.format("state = 'reversed'"), [REWARD]),
    (
        "rewards_held_while_pending",
        CHANGE_REWARD.format("state = 'available', held = true"),
        [REWARD],
    ),
    ("reward_counts_not_negative", "INSERT INTO reward_counts VALUES ($1, 'friend', -1)", [ANNA]),
    *(
        ("transfers_kind_known", NEW_TRANSFER, transfer(kind, accounts, reward_id=REWARD))
        for kind, accounts in (
            ("grant", "pending available"),
            ("release", "available pending"),
            ("reversal", "redeemed programme"),
            ("gift", "programme available"),
        )
    ),
    (
        "transfers_amount_in_range",
        NEW_TRANSFER,
        transfer("release", "pending available", 0, REWARD),
    ),
    ("transfers_of_rewards", NEW_TRANSFER, transfer("release", "pending available")),
    ("transfers_asked_for_have_an_id", NEW_TRANSFER, transfer("redemption", "available redeemed")),
    (
        "transfers_asked_for_have_an_id",
        NEW_TRANSFER,
        transfer("adjustment", "available programme", external_id="a-2"),
    ),
    ("transfers_cancel_another", NEW_TRANSFER, transfer("cancellation", "redeemed available")),
    ("transfers_grant_once", NEW_TRANSFER, transfer("grant", "programme pending", 1, REWARD)),
    ("transfers_release_once", NEW_TRANSFER, transfer("release", "pending available", 1, REWARD)),
    (
        "transfers_external_once",
        NEW_TRANSFER,
        transfer("adjustment", "available programme", 1, None, "payout-1", None, b"another"),
    ),
    (
        "transfers_cancelled_once",
        NEW_TRANSFER,
        transfer("cancellation", "redeemed available", 1, None, None, REDEMPTION),
    ),
    ("balances_pending_not_negative", NEW_BALANCE, [BERT, DEFAULT, -1, 0, 0]),
    ("balances_redeemed_not_negative", NEW_BALANCE, [BERT, DEFAULT, 0, -1, -1]),
    ("referrals_of_a_pair_once", NEW_REFERRAL, [ANNA, BERT, NOW, b"hash of anna"]),
    ("referrals_state_known", CHANGE_REFERRAL.format("state = 'paid'"), [BERT]),
    ("referrals_review_known", CHANGE_REFERRAL.format("review = 'closed'"), [BERT]),
    ("referrals_rules_exist", CHANGE_REFERRAL.format("version = 2"), [BERT]),
    ("programmes_key_unique", NEW_PROGRAMME, [uuid4(), NOW]),
    ("programme_versions_follow_each_other", NEW_VERSION, [NOW]),
    ("participants_external_once", NEW_PARTICIPANT, [uuid4(), None, "d-1", b"of d-1", None, NOW]),
    ("participants_are_somebody", NEW_PARTICIPANT, [uuid4(), None, "e-1", None, None, NOW]),
    (
        "participants_of_accounts_share_their_id",
        NEW_PARTICIPANT,
        [uuid4(), CARL, None, None, None, NOW],
    ),
    (
        "participants_erased_have_no_external_id",
        NEW_PARTICIPANT,
        [uuid4(), None, "e-1", b"of e-1", NOW, NOW],
    ),
    ("standings_not_negative", NEW_STANDING, [DORA, -1]),
    *(
        (constraint, NEW_EVENT, [uuid4(), event_id, DORA, *members, NOW])
        for constraint, event_id, members in (
            ("events_happen_once", "order-1", ("purchase", None, None, None)),
            ("events_amount_has_a_unit", "order-2", ("purchase", 1, None, None)),
            ("events_amount_has_a_unit", "order-2", ("purchase", None, "EUR", None)),
            ("events_amount_in_range", "order-2", ("purchase", -1, "EUR", None)),
            ("events_amount_in_range", "order-2", ("purchase", 10**12 + 1, "EUR", None)),
            ("events_refunds_name_an_event", "order-2", ("refund", None, None, None)),
            ("events_refunds_name_an_event", "order-2", ("purchase", None, None, "order-1")),
        )
    ),
    ("signals_kind_known", NEW_SIGNAL, [DORA, "fingerprint", NOW]),
    ("decisions_follow_each_other", NEW_DECISION, [BERT, NOW]),
    *(
        (f"webhook_endpoints_{rule}", NEW_ENDPOINT, [uuid4(), *members, NOW])
        for rule, members in (
            ("slot_once", (1, None, None, None, None, None)),
            ("slot_in_range", (0, None, None, None, None, None)),
            ("slot_in_range", (21, None, None, None, None, None)),
            ("fail_until_they_resume", (2, NOW, None, None, None, None)),
            ("disabled_for_a_reason", (2, None, None, NOW, None, None)),
            ("disabled_for_a_reason", (2, None, None, None, "gone", None)),
            ("deleted_are_disabled", (2, None, None, None, None, NOW)),
        )
    ),
    ("webhook_deliveries_state_known", NEW_DELIVERY, [uuid4(), HOOK, "lost", None, NOW]),
    *(
        ("webhook_deliveries_fail_for_a_reason", NEW_DELIVERY, [uuid4(), HOOK, *outcome, NOW])
        for outcome in (("failed", None), ("delivered", "disabled"))
    ),
    *(
        ("webhook_attempts_end_in_one_way", NEW_ATTEMPT, [MESSAGE, HOOK, *outcome, NOW])
        for outcome in ((None, None), (500, "timeout"))
    ),
    ("webhook_attempts_of_a_delivery", NEW_ATTEMPT, [uuid4(), HOOK, 204, None, NOW]),
]


@pytest.fixture
async def people(database: asyncpg.Connection) -> asyncpg.Connection:
    """Anna has a password and a code of 2 uses, with which Bert came, whom an issuer knows.

    She got a reward for that, which was paid out, and the payout failed.
    Dora, whom only a company knows, has bought something. A message is on its way to an endpoint.
    """
    for user_id, email, password_hash in (
        (ANNA, "anna@x", "a hash"),
        (BERT, "bert@x", None),
        (CARL, "carl@x", None),
    ):
        await database.execute(NEW_USER, user_id, email, password_hash, NOW)
    await database.execute(NEW_CODE, uuid4(), ANNA, "ANNAS", NOW, LATER, 2)
    await database.execute(NEW_REFERRAL, BERT, ANNA, NOW, b"hash of bert")
    await database.execute(NEW_IDENTITY, "bert", BERT, NOW)
    await database.execute(NEW_CHANGE, uuid4(), ANNA, 1, "email", None, b"1", LATER)
    for user_id in (ANNA, BERT):
        await database.execute(NEW_RECIPIENT, user_id, DEFAULT, NOW)
    await database.execute(NEW_REWARD, REWARD, DEFAULT, ANNA, BERT, NOW)
    paid = transfer("redemption", "available redeemed", 500, None, "payout-1", None, b"print")
    for one in (
        transfer("grant", "programme pending", 500, REWARD),
        transfer("release", "pending available", 500, REWARD),
        [REDEMPTION, *paid[1:]],
        transfer("cancellation", "redeemed available", 500, None, None, REDEMPTION),
    ):
        await database.execute(NEW_TRANSFER, *one)
    await database.execute(NEW_DECISION, BERT, NOW)
    await database.execute(NEW_PARTICIPANT, DORA, None, "d-1", b"of d-1", None, NOW)
    order = ["order-1", DORA, "purchase", 4900, "EUR", None, NOW]
    await database.execute(NEW_EVENT, uuid4(), *order)
    await database.execute(NEW_ENDPOINT, HOOK, 1, None, None, None, None, None, NOW)
    await database.execute(NEW_DELIVERY, MESSAGE, HOOK, "pending", None, NOW)
    return database


@pytest.mark.parametrize(("constraint", "statement", "arguments"), BROKEN)
async def test_it_cannot_be_broken(
    people: asyncpg.Connection, constraint: str, statement: str, arguments: Sequence[Any]
) -> None:
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as caught:
        await people.execute(statement, *arguments)
    assert caught.value.constraint_name == constraint


@pytest.mark.parametrize(
    ("statement", "arguments"),
    [
        pytest.param(
            f"UPDATE users SET {ERASE}, password_hash = NULL WHERE user_id = ANY ($1)",
            [[ANNA, BERT]],
            id="two erased accounts, both without an e-mail",
        ),
        pytest.param(CHANGE_CODE.format("uses = 2"), [ANNA], id="the last use"),
        pytest.param(
            CHANGE_CODE.format("max_uses = NULL, uses = 1000000"), [ANNA], id="uses without a limit"
        ),
    ],
)
async def test_what_breaks_no_rule_is_stored(
    people: asyncpg.Connection, statement: str, arguments: Sequence[Any]
) -> None:
    assert await people.execute(statement, *arguments) in {"UPDATE 1", "UPDATE 2"}


async def test_an_ended_code_does_not_hold_its_owner(people: asyncpg.Connection) -> None:
    for _ in range(2):
        await people.execute("UPDATE referral_codes SET ended_at = now()")
        await people.execute(NEW_CODE, uuid4(), ANNA, "ANNAS", NOW, LATER, None)
    assert await people.fetchval("SELECT count(*) FROM referral_codes WHERE code = 'ANNAS'") == 3


async def test_a_name_stays_its_first_owners_whatever_becomes_of_the_code(
    people: asyncpg.Connection,
) -> None:
    """Without the trigger on referral_codes it would not. NEW_CODE is as the release before names
    had owners writes it, which knows the refusal by the name of the index."""
    for made in ("OIL-10", "0IL-1O", "01L-IO"):
        await people.execute("UPDATE referral_codes SET ended_at = now()")
        await people.execute(NEW_CODE, uuid4(), ANNA, made, NOW, LATER, None)
    for end in ("UPDATE referral_codes SET ended_at = now()", "DELETE FROM referral_codes"):
        await people.execute(end)
        for asked in ("ANNAS", "OIL-10", "01I-10", "O11-LO"):
            with pytest.raises(asyncpg.UniqueViolationError) as caught:
                await people.execute(NEW_CODE, uuid4(), BERT, asked, NOW, LATER, None)
            assert caught.value.constraint_name == "referral_codes_live_code_unique"
    await people.execute(NEW_CODE, uuid4(), BERT, "BERTS", NOW, LATER, None)
    await people.execute(NEW_CODE, uuid4(), ANNA, "ANNAS", NOW, LATER, None)
    names = await people.fetch("SELECT name, owner_id FROM referral_code_names")
    assert {tuple(name) for name in names} == {("ANNAS", ANNA), ("011-10", ANNA), ("BERTS", BERT)}


async def test_every_constraint_with_a_name_of_ours_is_shown(database: asyncpg.Connection) -> None:
    rows = await database.fetch(
        """
        SELECT conname AS name
          FROM pg_constraint
         WHERE connamespace = 'public'::regnamespace
           AND contype IN ('c', 'u', 'x')
           AND conrelid::regclass::text NOT LIKE '%yoyo%'
        UNION
        SELECT i.indexrelid::regclass::text
          FROM pg_index i
          JOIN pg_class c ON c.oid = i.indrelid
         WHERE i.indisunique
           AND NOT i.indisprimary
           AND c.relnamespace = 'public'::regnamespace
           AND c.relname NOT LIKE '%yoyo%'
        """
    )
    shown = {constraint for constraint, _, _ in BROKEN}
    assert {row["name"] for row in rows} - shown == set()
