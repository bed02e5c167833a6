"""Judges webhooks: against what PostgreSQL says has happened, and against what the receiver got.

A message is there at every instant if and only if its cause is; it is delivered or still planned;
each attempt has its id and its bytes, and a signature of its own.
"""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import asyncpg
from standardwebhooks import Webhook

from tests.faults.webhooks import Webhooks
from tests.stand_ins.webhooks import Got

Row: TypeAlias = Any
"""A row of PostgreSQL."""
SIGNED_ANEW_SECONDS: Final = 2.0
"""Of two attempts with as much between them the second has a later timestamp, in whole seconds."""
NAMED: Final = re.compile('"participant ([^"]+)"')
"""A participant in a stored message, whom the sent one names as the company does."""

# What no table tells the cause of is not compared.
WRONG_MESSAGES: Final = """
    WITH states AS (
        SELECT referral_id, sequence, state,
               lag(state) OVER (PARTITION BY referral_id ORDER BY sequence) AS before
          FROM decisions
    ), happened (type, about) AS (
        SELECT 'participant.created', participant_id::text FROM participants WHERE user_id IS NULL
         UNION ALL
        SELECT 'referral.created', referral_id::text FROM decisions WHERE sequence = 1
         UNION ALL
        SELECT 'referral.flagged', user_id::text FROM referrals WHERE cardinality(flags) > 0
         UNION ALL
        SELECT 'referral.' || state, referral_id || ' by ' || sequence
          FROM states
         WHERE state <> 'pending'
           AND state IS DISTINCT FROM before
         UNION ALL
        SELECT 'reward.created', reward_id::text FROM transfers WHERE kind = 'grant'
         UNION ALL
        SELECT 'reward.available', reward_id::text FROM transfers WHERE kind = 'release'
         UNION ALL
        SELECT 'reward.reversed', reward_id::text FROM transfers WHERE kind = 'reversal'
         UNION ALL
        SELECT 'reward.reversed', reward_id || ' to ' || sum(amount)
          FROM transfers
         WHERE kind = 'reversal'
         GROUP BY reward_id
         UNION ALL
        SELECT 'redemption.created', transfer_id::text FROM transfers WHERE kind = 'redemption'
         UNION ALL
        SELECT 'redemption.cancelled', cancels::text FROM transfers WHERE kind = 'cancellation'
    ), messages AS (
        SELECT type, convert_from(body, 'UTF8')::jsonb -> 'data' AS data FROM webhook_messages
    ), told (type, about) AS (
        SELECT type,
               CASE WHEN type IN ('referral.created', 'referral.flagged')
                         THEN data -> 'referral' ->> 'id'
                    WHEN type LIKE 'referral.%'
                         THEN concat(data -> 'referral' ->> 'id', ' by ',
                                     data -> 'referral' ->> 'sequence')
                    ELSE data -> split_part(type, '.', 1) ->> 'id' END
          FROM messages
         WHERE split_part(type, '.', 1) IN ('participant', 'referral', 'reward', 'redemption')
         UNION ALL
        SELECT type, concat(data -> 'reward' ->> 'id', ' to ',
                            max((data -> 'reward' ->> 'reversed')::bigint))
          FROM messages
         WHERE type = 'reward.reversed'
         GROUP BY type, data -> 'reward' ->> 'id'
    )
    SELECT type, about, happened.times AS happened, told.times AS told
      FROM (SELECT type, about, count(*) AS times FROM happened GROUP BY type, about) AS happened
      FULL JOIN (SELECT type, about, count(*) AS times FROM told GROUP BY type, about) AS told
           USING (type, about)
     WHERE happened.times IS DISTINCT FROM told.times
     LIMIT 10
"""

# A receiver drops what is older than what it knows, so what is of the same age must be the same.
WRONG_SEQUENCES: Final = """
    SELECT referral ->> 'id' AS referral_id, array_agg(type) AS types, array_agg(referral) AS told
      FROM (SELECT type, convert_from(body, 'UTF8')::jsonb #> '{data,referral}' AS referral
              FROM webhook_messages
             WHERE type LIKE 'referral.%') AS messages
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
    """Return what is true now and never may be."""
    async with database.transaction(isolation="repeatable_read", readonly=True):
        return [
            *(f"a wrong webhook: {dict(row)}" for row in await database.fetch(WRONG_MESSAGES)),
            *(f"two of an age: {dict(row)}" for row in await database.fetch(WRONG_SEQUENCES)),
            *(f"a wrong delivery: {dict(row)}" for row in await database.fetch(WRONG_DELIVERIES)),
            *(f"disabled: {dict(row)}" for row in await database.fetch(WRONG_ENDPOINTS)),
        ]


async def judge(webhooks: Webhooks, database: asyncpg.Connection) -> list[str]:
    """Return every violation, in words. The service must have ended: nothing may be under way."""
    stored = {row["message_id"]: row for row in await database.fetch(MESSAGES)}
    external_ids = {row[0]: row[1] for row in await database.fetch(EXTERNAL_IDS)}
    receiver = webhooks.receiver
    return [
        *await wrong_now(database),
        *wrong_receipts(stored, external_ids, receiver.got, receiver.accepted),
        *wrong_attempts(receiver.got, webhooks.secret),
    ]


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
