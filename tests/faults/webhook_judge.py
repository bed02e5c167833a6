"""Judges webhooks: against what PostgreSQL says has happened, and against what the receiver got.

A message is there at every instant if and only if its cause is; it is delivered or still planned;
each attempt has its id and its bytes, and a signature of its own.
"""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import asyncpg
from standardwebhooks import Webhook

from tests.faults.webhooks import Webhooks
from tests.stand_ins.webhooks import Got

Row: TypeAlias = Any
"""A row of PostgreSQL."""
SIGNED_ANEW_SECONDS: Final = 2.0
"""Of two attempts with as much between them the second has a later timestamp, in whole seconds."""
JUST_NOW: Final = timedelta(seconds=10)
EVER: Final = datetime(2000, 1, 1, tzinfo=UTC)
NAMED: Final = re.compile('"participant ([^"]+)"')
"""A participant in a stored message, whom the sent one names as the company does."""

# A message is written at the time of its cause. What no table tells the cause of is not compared,
# such as flags that an approval has lifted.
WRONG_MESSAGES: Final = """
    WITH recent AS (
        SELECT referral_id, sequence FROM decisions WHERE decided_at >= $1
    ), approved AS (
        SELECT referral_id FROM decisions WHERE review = 'approved'
    ), states AS (
        SELECT referral_id, sequence, state,
               lag(state) OVER (PARTITION BY referral_id ORDER BY sequence) AS before
          FROM decisions
         WHERE referral_id IN (SELECT referral_id FROM recent)
    ), moved AS (
        SELECT kind, reward_id, transfer_id, cancels FROM transfers WHERE created_at >= $1
    ), happened (type, about) AS (
        SELECT 'participant.created', participant_id::text
          FROM participants
         WHERE user_id IS NULL
           AND created_at >= $1
         UNION ALL
        SELECT 'referral.created', referral_id::text FROM recent WHERE sequence = 1
         UNION ALL
        SELECT 'referral.flagged', referral_id::text
          FROM recent
          JOIN referrals ON user_id = referral_id
         WHERE recent.sequence = 1
           AND cardinality(flags) > 0
           AND referral_id NOT IN (SELECT referral_id FROM approved)
         UNION ALL
        SELECT 'referral.' || state, concat(referral_id, ' by ', sequence)
          FROM recent
          JOIN states USING (referral_id, sequence)
         WHERE state <> 'pending'
           AND state IS DISTINCT FROM before
         UNION ALL
        SELECT 'reward.created', reward_id::text FROM moved WHERE kind = 'grant'
         UNION ALL
        SELECT 'reward.available', reward_id::text FROM moved WHERE kind = 'release'
         UNION ALL
        SELECT 'reward.reversed', reward_id::text FROM moved WHERE kind = 'reversal'
         UNION ALL
        SELECT 'redemption.created', transfer_id::text FROM moved WHERE kind = 'redemption'
         UNION ALL
        SELECT 'redemption.cancelled', cancels::text FROM moved WHERE kind = 'cancellation'
    ), messages AS (
        SELECT type, split_part(type, '.', 1) AS topic,
               convert_from(body, 'UTF8')::jsonb -> 'data' AS data
          FROM webhook_messages
         WHERE created_at >= $1
    ), told (type, about) AS (
        SELECT type,
               CASE WHEN topic <> 'referral' OR type IN ('referral.created', 'referral.flagged')
                    THEN data -> topic ->> 'id'
                    ELSE concat(data -> topic ->> 'id', ' by ', data -> topic ->> 'sequence') END
          FROM messages
         WHERE topic IN ('participant', 'referral', 'reward', 'redemption')
           AND NOT (type = 'referral.flagged' AND data -> 'referral' ->> 'id' IN (
                    SELECT referral_id::text FROM approved))
    )
    SELECT type, about, happened.times AS happened, told.times AS told
      FROM (SELECT type, about, count(*) AS times FROM happened GROUP BY type, about) AS happened
      FULL JOIN (SELECT type, about, count(*) AS times FROM told GROUP BY type, about) AS told
           USING (type, about)
     WHERE happened.times IS DISTINCT FROM told.times
     LIMIT 10
"""

WRONG_REVERSALS: Final = """
    SELECT reward_id::text, moved.amount, told.amount AS told
      FROM (SELECT reward_id, sum(amount) AS amount
              FROM transfers
             WHERE kind = 'reversal'
             GROUP BY reward_id) AS moved
      LEFT JOIN (SELECT (reward ->> 'id')::uuid AS reward_id,
                        max((reward ->> 'reversed')::bigint) AS amount
                   FROM webhook_messages
                  CROSS JOIN LATERAL (
                         SELECT convert_from(body, 'UTF8')::jsonb #> '{data,reward}' AS reward) AS r
                  WHERE type = 'reward.reversed'
                  GROUP BY 1) AS told USING (reward_id)
     WHERE moved.amount IS DISTINCT FROM told.amount
     LIMIT 10
"""

# A receiver drops what is older than what it knows, so what is of the same age must be the same.
WRONG_SEQUENCES: Final = """
    SELECT referral ->> 'id' AS referral_id, array_agg(type) AS types, array_agg(referral) AS told
      FROM (SELECT type, convert_from(body, 'UTF8')::jsonb #> '{data,referral}' AS referral
              FROM webhook_messages
             WHERE type LIKE 'referral.%'
               AND created_at >= $1) AS messages
     GROUP BY referral ->> 'id', referral ->> 'sequence'
    HAVING count(DISTINCT referral) > 1
     LIMIT 10
"""

# The endpoint is there from the beginning, and listens to everything.
WRONG_DELIVERIES: Final = """
    SELECT m.message_id::text, m.type, d.state, count(j.job_id) AS planned
      FROM webhook_messages m
      LEFT JOIN webhook_deliveries d USING (message_id)
      LEFT JOIN jobs j
             ON j.kind = 'delivery'
            AND j.payload ->> 'message_id' = m.message_id::text
            AND j.payload ->> 'endpoint_id' = d.endpoint_id::text
            AND j.due_at IS NOT NULL
            AND j.parked_at IS NULL
     WHERE m.created_at >= $1
     GROUP BY m.message_id, m.type, d.endpoint_id, d.state
    HAVING (d.state = 'pending')::integer IS DISTINCT FROM count(j.job_id)
     LIMIT 10
"""

WRONG_ENDPOINTS: Final = """
    SELECT endpoint_id::text, disabled_reason
      FROM webhook_endpoints
     WHERE disabled_at IS NOT NULL
"""

MESSAGES: Final = """
    SELECT m.message_id::text, m.body, d.state
      FROM webhook_messages m
      JOIN webhook_deliveries d USING (message_id)
"""


EXTERNAL_IDS: Final = "SELECT participant_id::text, external_id FROM participants"


async def wrong_now(database: asyncpg.Connection) -> list[str]:
    """Return what is true now and never may be, as far as it has happened just now."""
    return await _wrong_since(database, datetime.now(UTC) - JUST_NOW)


async def judge(webhooks: Webhooks, database: asyncpg.Connection) -> list[str]:
    """Return every violation, in words. The service must have ended: nothing may be under way."""
    stored = {row["message_id"]: row for row in await database.fetch(MESSAGES)}
    external_ids = {row[0]: row[1] for row in await database.fetch(EXTERNAL_IDS)}
    receiver = webhooks.receiver
    return [
        *await wrong_at_last(database),
        *wrong_receipts(stored, external_ids, receiver.got, receiver.accepted),
        *wrong_attempts(receiver.got, webhooks.secret),
    ]


async def wrong_at_last(database: asyncpg.Connection) -> list[str]:
    """Return what is wrong in PostgreSQL, whenever it has happened."""
    reversals = await database.fetch(WRONG_REVERSALS)
    return [
        *await _wrong_since(database, EVER),
        *(f"a wrong sum in a webhook: {dict(row)}" for row in reversals),
    ]


async def _wrong_since(database: asyncpg.Connection, since: datetime) -> list[str]:
    looks = {
        "a wrong webhook": WRONG_MESSAGES,
        "two of an age": WRONG_SEQUENCES,
        "a wrong delivery": WRONG_DELIVERIES,
    }
    async with database.transaction(isolation="repeatable_read", readonly=True):
        found = [
            f"{what}: {dict(row)}"
            for what, statement in looks.items()
            for row in await database.fetch(statement, since)
        ]
        disabled = await database.fetch(WRONG_ENDPOINTS)
        return [*found, *(f"disabled: {dict(row)}" for row in disabled)]


def wrong_receipts(
    stored: Mapping[str, Row],
    external_ids: Mapping[str, str | None],
    got: Sequence[Got],
    accepted: Collection[str],
) -> Iterator[str]:
    """Compare what was received with what is stored, and with the company's ids of participants."""

    def external_id(found: re.Match[str]) -> str:
        return json.dumps(external_ids[found[1]])

    for each in got:
        row = stored.get(each.message_id)
        if row is None:
            yield f"a webhook of what never was: {each.body!r}"
        elif NAMED.sub(external_id, row["body"].decode()) != each.body.decode():
            yield f"other bytes than stored: {each.body!r}, {row['body']!r}"
    for message_id, row in stored.items():
        if row["state"] == "failed" or (row["state"] == "delivered" and message_id not in accepted):
            yield f"a webhook is lost: {dict(row)}"


def wrong_attempts(got: Sequence[Got], secret: str) -> Iterator[str]:
    """Compare the attempts to send one message."""
    webhook = Webhook(secret)
    attempts = defaultdict[str, list[Got]](list)
    for each in got:
        attempts[each.message_id].append(each)
        # Not `verify`: the service's clock may be an hour off.
        signed_at = datetime.fromtimestamp(int(each.headers["webhook-timestamp"]), UTC)
        signature = webhook.sign(each.message_id, signed_at, each.body.decode())
        if each.headers["webhook-signature"] != signature:
            yield f"a wrong signature: {dict(each.headers)}, {each.body!r}"
    for message_id, made in attempts.items():
        signed = [(each.at, each.headers["webhook-timestamp"]) for each in made]
        for (earlier, first), (later, second) in itertools.pairwise(signed):
            if later - earlier >= SIGNED_ANEW_SECONDS and first == second:
                yield f"signed once, sent twice: {message_id}, {signed}"
