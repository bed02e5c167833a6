"""Judges referrals, rewards and the ledger as PostgreSQL holds them, at any instant.

All of it has to hold in every snapshot: what a transaction does is there whole or not at all. Under
load the newest referrals are looked at, which are the ones that change; in the end all are.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from tests.faults.conversion_model import Earned, Row, earned_by, states_of
from tests.faults.shop import CAPS, EVERY, PROGRAMME

NEWEST: Final = 200
"""How many referrals are looked at under load."""
BATCH: Final = 1000
"""How many are looked at together in the end."""

WRONG_SEQUENCES: Final = """
    SELECT r.user_id::text, r.state, r.sequence, d.decisions, d.last, d.states
      FROM referrals r
     CROSS JOIN LATERAL (
            SELECT count(*) AS decisions, count(DISTINCT sequence) AS sequences,
                   min(sequence) AS first, max(sequence) AS last,
                   array_agg(state ORDER BY sequence) AS states
              FROM decisions
             WHERE referral_id = r.user_id
           ) AS d
     WHERE r.user_id = ANY ($1)
       AND ((d.decisions, d.sequences, d.first, d.last)
            IS DISTINCT FROM (r.sequence::bigint, r.sequence::bigint, 1, r.sequence)
            OR d.states[d.decisions] IS DISTINCT FROM r.state
            OR (r.nth IS NULL) = ('qualified' = ANY (d.states)))
"""

WRONG_STANDINGS: Final = """
    SELECT r.referrer_id::text, r.counted, s.qualified
      FROM (SELECT referrer_id,
                   count(*) FILTER (WHERE state IN ('qualified', 'rewarded')) AS counted
              FROM referrals
             WHERE referrer_id = ANY ($1)
             GROUP BY referrer_id) AS r
      LEFT JOIN standings s ON s.participant_id = r.referrer_id
     WHERE r.counted <> COALESCE(s.qualified, 0)
"""

# Where nothing was ever taken back each referral that qualified was one more; and never is there a
# referral that was the n-th where fewer have qualified.
WRONG_NTHS: Final = """
    SELECT r.referrer_id::text, r.nths
      FROM (SELECT referrer_id, array_agg(nth ORDER BY nth) AS nths,
                   bool_or(EXISTS (SELECT FROM decisions d
                                    WHERE d.referral_id = user_id
                                      AND d.state = 'reversed')) AS reversed
              FROM referrals
             WHERE referrer_id = ANY ($1)
               AND nth IS NOT NULL
             GROUP BY referrer_id) AS r
     WHERE r.nths[cardinality(r.nths)] > cardinality(r.nths)
        OR (NOT r.reversed
            AND r.nths <> ARRAY(SELECT generate_series(1, cardinality(r.nths))))
"""

# Each transfer takes from one account what it adds to another.
WRONG_BALANCES: Final = """
    WITH moved AS (
        SELECT participant_id, unit, account, sum(amount) AS amount
          FROM (SELECT participant_id, unit, from_account AS account, -amount AS amount
                  FROM transfers
                 WHERE participant_id = ANY ($1)
                UNION ALL
                SELECT participant_id, unit, to_account, amount
                  FROM transfers
                 WHERE participant_id = ANY ($1)) AS entries
         WHERE account <> 'programme'
         GROUP BY participant_id, unit, account
    ), kept AS (
        SELECT participant_id, unit, account, amount
          FROM balances
         CROSS JOIN LATERAL (VALUES ('pending', pending), ('available', available),
                                    ('redeemed', redeemed)) AS each (account, amount)
         WHERE participant_id = ANY ($1)
    )
    SELECT participant_id::text, unit, account, kept.amount AS balance, moved.amount AS moved
      FROM kept
      FULL JOIN moved USING (participant_id, unit, account)
     WHERE COALESCE(kept.amount, 0) <> COALESCE(moved.amount, 0)
"""

# Less than nothing is available only by what was taken back, never by a payout.
PAID_TOO_MUCH: Final = """
    SELECT b.participant_id::text, b.unit, b.available, b.redeemed
      FROM balances b
     WHERE b.participant_id = ANY ($1)
       AND b.available < 0
       AND b.available + (SELECT COALESCE(sum(t.amount), 0)
                            FROM transfers t
                           WHERE t.participant_id = b.participant_id
                             AND t.unit = b.unit
                             AND (t.from_account, t.to_account) = ('available', 'programme')) < 0
"""

# A reward is given once and released at most once; what is left of it lies in one account.
WRONG_REWARDS: Final = """
    WITH moved AS (
        SELECT reward_id,
               count(*) FILTER (WHERE kind = 'grant') AS grants,
               count(*) FILTER (WHERE kind = 'release') AS releases,
               sum(amount) FILTER (WHERE kind = 'grant') AS given,
               COALESCE(sum(amount) FILTER (WHERE kind = 'reversal'), 0) AS taken,
               COALESCE(sum(amount) FILTER (WHERE to_account = 'pending'), 0)
               - COALESCE(sum(amount) FILTER (WHERE from_account = 'pending'), 0) AS pending,
               COALESCE(sum(amount) FILTER (WHERE to_account = 'available'), 0)
               - COALESCE(sum(amount) FILTER (WHERE from_account = 'available'), 0) AS available
          FROM transfers
         WHERE participant_id = ANY ($1)
           AND reward_id IS NOT NULL
         GROUP BY reward_id
    ), stored AS (
        SELECT reward_id, rule, state, amount, reversed,
               CASE state WHEN 'pending' THEN amount - reversed ELSE 0 END AS pending,
               CASE state WHEN 'available' THEN amount - reversed ELSE 0 END AS available
          FROM rewards
         WHERE participant_id = ANY ($1)
    )
    SELECT reward_id::text, w.rule, w.state, w.amount, w.reversed, m.*
      FROM stored w
      FULL JOIN moved m USING (reward_id)
     WHERE m.releases > 1
        OR (m.grants, m.given, m.taken, m.pending, m.available)
           IS DISTINCT FROM (1::bigint, w.amount::numeric, w.reversed::numeric,
                             w.pending::numeric, w.available::numeric)
"""

GIVEN_TWICE: Final = """
    SELECT rule, participant_id::text, cause_id::text, nth, count(*)
      FROM rewards
     WHERE participant_id = ANY ($1)
       AND state <> 'reversed'
     GROUP BY rule, participant_id, cause_id, nth
    HAVING count(*) > 1
"""

OVER_THE_CAP_OF_A_REFERRER: Final = """
    SELECT participant_id::text, count(*)
      FROM rewards
     WHERE rule = 'friend'
       AND participant_id = ANY ($1)
       AND state <> 'reversed'
     GROUP BY participant_id
    HAVING count(*) > $2
"""

OVER_THE_CAP_OF_ALL: Final = """
    SELECT count(*)
      FROM rewards
     WHERE rule = 'thanks'
       AND state <> 'reversed'
    HAVING count(*) > $1
"""

WRONG_MILESTONES: Final = """
    SELECT s.participant_id::text, s.qualified, reached.nths
      FROM standings s
     CROSS JOIN LATERAL (
            SELECT COALESCE(array_agg(nth ORDER BY nth), '{}') AS nths
              FROM rewards
             WHERE participant_id = s.participant_id
               AND rule = 'fives'
               AND state <> 'reversed'
           ) AS reached
     WHERE s.participant_id = ANY ($1)
       AND reached.nths <> ARRAY(SELECT generate_series($2::int, s.qualified, $2::int))
"""

# Once it is free a sweep releases it.
HELD_FOR_NOTHING: Final = """
    SELECT reward_id::text, rule
      FROM rewards w
     WHERE participant_id = ANY ($1)
       AND referral_id IS NULL
       AND held
       AND NOT EXISTS (SELECT FROM referrals r
                        WHERE r.referrer_id = w.participant_id AND r.review = 'open')
"""

TOO_EARLY: Final = """
    SELECT reward_id::text, rule, available_at, clock_timestamp() AS now
      FROM rewards
     WHERE participant_id = ANY ($1)
       AND state = 'available'
       AND available_at > clock_timestamp() + $2::interval
"""

# What the programme has given lies somewhere.
WRONG_SUMS: Final = """
    SELECT unit, given.amount AS given, owned.amount AS owned
      FROM (SELECT unit, sum(CASE WHEN from_account = 'programme' THEN amount
                                  WHEN to_account = 'programme' THEN -amount
                                  ELSE 0 END) AS amount
              FROM transfers
             GROUP BY unit) AS given
      FULL JOIN (SELECT unit, sum(pending + available + redeemed) AS amount
                   FROM balances
                  GROUP BY unit) AS owned USING (unit)
     WHERE given.amount IS DISTINCT FROM owned.amount
"""

# As many were given at some time as the cap that refused one allows.
REFUSED_FOR_NOTHING: Final = """
    WITH refused AS (
        SELECT DISTINCT d.detail AS rule,
               CASE d.detail WHEN 'friend' THEN r.referrer_id ELSE r.programme_id END AS subject_id
          FROM decisions d
          JOIN referrals r ON r.user_id = d.referral_id
         WHERE d.reason = 'cap-reached'
    ), given AS (
        SELECT rule, CASE rule WHEN 'friend' THEN participant_id ELSE programme_id END
               AS subject_id, count(*) AS given
          FROM rewards
         WHERE rule IN ('friend', 'thanks')
         GROUP BY 1, 2
    )
    SELECT rule, subject_id::text, given
      FROM refused
      LEFT JOIN given USING (rule, subject_id)
     WHERE COALESCE(given, 0) < CASE rule WHEN 'friend' THEN $1::int ELSE $2::int END
"""

NEWEST_REFERRALS: Final = """
    SELECT r.user_id, r.referrer_id
      FROM referrals r
      JOIN programmes g USING (programme_id)
     WHERE g.key = $1
     ORDER BY r.user_id DESC
     LIMIT $2
"""

NEXT_REFERRALS: Final = """
    SELECT r.user_id, r.referrer_id
      FROM referrals r
      JOIN programmes g USING (programme_id)
     WHERE g.key = $1
       AND r.user_id > $3
     ORDER BY r.user_id
     LIMIT $2
"""

OTHER_REFERRALS: Final = """
    SELECT r.user_id, r.referrer_id
      FROM referrals r
      JOIN programmes g USING (programme_id)
     WHERE g.key <> $1
"""

REFERRALS: Final = """
    SELECT r.user_id AS referral_id, r.referrer_id, r.state, r.review, r.nth, r.registered_at,
           r.window_ends_at, r.state_changed_at
      FROM referrals r
      JOIN programmes g USING (programme_id)
     WHERE g.key = $2
       AND r.user_id = ANY ($1)
"""

EVENTS: Final = """
    SELECT participant_id, event_id, external_id AS id, type, amount, unit, refunds, occurred_at
      FROM events
     WHERE participant_id = ANY ($1)
"""

LIVE_REWARDS: Final = """
    SELECT referral_id, rule, cause_id, participant_id, unit, amount - reversed AS amount, state,
           held, available_at
      FROM rewards
     WHERE referral_id = ANY ($1)
       AND state <> 'reversed'
"""

REFUSED: Final = """
    SELECT referral_id, detail
      FROM decisions
     WHERE referral_id = ANY ($1)
       AND reason = 'cap-reached'
"""

OF_PARTICIPANTS: Final = {
    "a balance that is not the sum of its transfers": (WRONG_BALANCES, ()),
    "paid out more than there was": (PAID_TOO_MUCH, ()),
    "a reward that is not what its transfers say": (WRONG_REWARDS, ()),
    "given twice": (GIVEN_TWICE, ()),
    "more than the cap of a referrer": (OVER_THE_CAP_OF_A_REFERRER, (CAPS["friend"],)),
    "milestones that are not what was reached": (WRONG_MILESTONES, (EVERY,)),
    "a milestone is held for nothing": (HELD_FOR_NOTHING, ()),
    "a wrong standing": (WRONG_STANDINGS, ()),
    "a gap or a twin among the referrals that qualified": (WRONG_NTHS, ()),
}
"""What to complain about, and the statement that finds it, with its arguments after the ids."""


async def wrong_now(database: asyncpg.Connection, clocks_off: timedelta) -> list[str]:
    """Return what is true now of the newest referrals and never may be.

    `clocks_off` is how far the service's clocks may be ahead of PostgreSQL's.
    """
    async with database.transaction(isolation="repeatable_read", readonly=True):
        newest = await database.fetch(NEWEST_REFERRALS, PROGRAMME, NEWEST)
        return await _wrong(database, newest, clocks_off)


async def wrong_at_last(database: asyncpg.Connection, clocks_off: timedelta) -> list[str]:
    """Return what is wrong with any referral, and with the ledger as a whole."""
    found, after = [], UUID(int=0)
    while batch := await database.fetch(NEXT_REFERRALS, PROGRAMME, BATCH, after):
        found += await _wrong(database, batch, clocks_off)
        after = batch[-1]["user_id"]
    others = await database.fetch(OTHER_REFERRALS, PROGRAMME)
    gaps = await database.fetch(WRONG_SEQUENCES, [row["user_id"] for row in others])
    standings = await database.fetch(WRONG_STANDINGS, list({row["referrer_id"] for row in others}))
    refused = await database.fetch(REFUSED_FOR_NOTHING, CAPS["friend"], CAPS["thanks"])
    return [
        *found,
        *_listed("decisions with gaps", gaps),
        *_listed("a wrong standing", standings),
        *_listed("wrong sums", await database.fetch(WRONG_SUMS)),
        *_listed("refused before the cap was reached", refused),
    ]


async def _wrong(
    database: asyncpg.Connection, chosen: Sequence[Row], clocks_off: timedelta
) -> list[str]:
    referral_ids = [row["user_id"] for row in chosen]
    participant_ids = list({*referral_ids, *(row["referrer_id"] for row in chosen)})
    early = await database.fetch(TOO_EARLY, participant_ids, clocks_off)
    over = await database.fetch(OVER_THE_CAP_OF_ALL, CAPS["thanks"])
    gaps = await database.fetch(WRONG_SEQUENCES, referral_ids)
    found = [
        *_listed("released before its time", early),
        *_listed("more than the cap of all", over),
        *_listed("decisions with gaps", gaps),
    ]
    for complaint, (statement, arguments) in OF_PARTICIPANTS.items():
        rows = await database.fetch(statement, participant_ids, *arguments)
        found += _listed(complaint, rows)
    referrals = await database.fetch(REFERRALS, referral_ids, PROGRAMME)
    events = _by("participant_id", await database.fetch(EVENTS, referral_ids))
    rewards = _by("referral_id", await database.fetch(LIVE_REWARDS, referral_ids))
    refused = _by("referral_id", await database.fetch(REFUSED, referral_ids))
    for referral in referrals:
        referral_id = referral["referral_id"]
        rules = {row["detail"] for row in refused[referral_id]}
        found += wrong_referral(referral, events[referral_id], rewards[referral_id], rules)
    return found


def wrong_referral(
    referral: Row, events: Sequence[Row], rewards: Sequence[Row], refused: set[str]
) -> Iterator[str]:
    """Compare a referral and its live rewards with what the model makes of its events."""
    for complaint in _complaints(referral, events, rewards, refused):
        known = sorted((str(event["id"]), event["type"], event["amount"]) for event in events)
        yield f"{complaint}: {dict(referral)}, {known}, {[dict(reward) for reward in rewards]}"


def _complaints(
    referral: Row, events: Sequence[Row], rewards: Sequence[Row], refused: set[str]
) -> Iterator[str]:
    states = states_of(referral, events)
    rewarded = any(row["state"] == "available" and row["rule"] != "welcome" for row in rewards)
    if states == {"qualified"} and rewarded:
        states = {"rewarded"}
    if referral["state"] not in states:
        yield f"a referral is not {states}"
    earned = earned_by(referral, events, refused)
    given = [
        Earned(row["rule"], row["cause_id"], row["participant_id"], row["unit"], row["amount"])
        for row in rewards
    ]
    if Counter(given) != Counter(earned.keys()):
        yield f"rewards are not {list(earned)}"
    for row, reward in zip(rewards, given, strict=True):
        waits, is_open = row["state"] == "pending", referral["review"] == "open"
        if row["held"] is not is_open or (is_open and not waits):
            yield f"{reward.rule} is {row['state']} in spite of its review, or held without one"
        until = earned.get(reward)
        if waits and not is_open and until is None:
            yield f"{reward.rule} waits for nothing"
        if waits and until is not None and row["available_at"] != until:
            yield f"{reward.rule} waits until {row['available_at']}, not {until}"


def _listed(complaint: str, rows: Iterable[Row]) -> list[str]:
    return [f"{complaint}: {dict(row)}" for row in rows]


def _by(member: str, rows: Iterable[Row]) -> defaultdict[Any, list[Row]]:
    grouped: defaultdict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row[member]].append(row)
    return grouped
